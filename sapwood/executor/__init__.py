"""Getting a plan to the device and its outcome back."""
