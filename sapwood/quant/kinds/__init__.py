"""The few canonical forms of quantised weights: every format is turned into one of them, and kernels know no other."""
