"""The cells over Triton blocks: `kernels.cells` bound to float32 mathematics, overflow-safe, NaN kept."""

from functools import cache

import triton
import triton.language as tl

from ..cells import CELLS


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Within 2 ulp of float32; a polynomial where 1 - 2 / (exp(2 x) + 1) would cancel (Cephes, tanhf)."""
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    small = p * z * x + x
    large = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    return tl.where(tl.abs(x) < 0.625, small, large)


@triton.jit
def relu(x):
    return tl.where(x < 0.0, 0.0, x)  # NaN stays


@triton.jit
def dsigmoid(y):
    return y * (1.0 - y)


@triton.jit
def dtanh(y):
    return 1.0 - y * y


@triton.jit
def drelu(y):
    return tl.where(y > 0.0, 1.0, 0.0)


_NAMES = ("sigmoid", "tanh", "relu", "dsigmoid", "dtanh", "drelu")


@cache
def on_blocks(cell):
    """(forward, backward) of a cell as Triton functions of float32 blocks."""
    primitives = {name: globals()[name] for name in _NAMES}
    # Triton 3.6 does not compile a function that returns None among others. The interpreter asks of every function that
    # it sees triton.language.
    return tuple(triton.jit(f) for f in CELLS[cell].bind(**primitives, nothing=tl.constexpr(0.0), tl=tl))
