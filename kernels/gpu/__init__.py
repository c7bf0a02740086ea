"""Triton kernels. Importing a module of this package needs triton; neither needs a GPU."""
