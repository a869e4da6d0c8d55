"""One rank: the device truth per slot, the batch of a step, and the worker that runs plans on it."""
