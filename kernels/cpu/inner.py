"""How the parts of a kernel are compiled: for other compiled code to call, so without the wrappers of an entry.

A part's symbol is its module, its qualified name and a number that Numba counts up anew in every process. Two kernels
that two processes compiled may hold different code under one symbol, and a process that loads both from the disk would
run one's code for the other's. So every kernel that is built signs its parts' names with a token.
"""

from contextlib import contextmanager
from types import FunctionType
from uuid import uuid4

from numba import njit

_compile = njit(nogil=True, error_model="numpy", fastmath=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
_token = ""


@contextmanager
def signed():
    """Parts that are made within carry a token that no other kernel's have, in this or any other process."""
    global _token
    _token = f"{uuid4().hex[:16]}."
    try:
        yield
    finally:
        _token = ""


def inner(function):
    """Compiles `function` as a part of the kernel that is being built. Parts are not shared between kernels."""
    code, names = function.__code__, function.__globals__
    part = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    part.__qualname__ = _token + function.__name__
    part.__doc__ = function.__doc__
    return _compile(part)
