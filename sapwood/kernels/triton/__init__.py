"""Triton kernels. Importing a module of this package imports triton, so only what has chosen them may do it."""
