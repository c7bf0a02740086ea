"""How the parts of a kernel are compiled: for other compiled code to call, so without the wrappers of an entry."""

from numba import njit

inner = njit(nogil=True, error_model="numpy", fastmath=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
