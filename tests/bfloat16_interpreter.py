"""bfloat16 in Triton's interpreter, which keeps it as 16-bit integers: it multiplies those in a dot, computes with them
in arithmetic, and truncates where a GPU rounds, without a word (Triton 3.6 to 3.9, documented as unsupported).

After `repair()` a dot of bfloat16 is exact products with float32 sums, a conversion rounds to nearest even, and what a
kernel should not do in bfloat16, arithmetic, raises.
"""

from functools import cache

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def to_float32(bits):
    """bfloat16 as 16-bit integers to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values):
    """float32 to bfloat16 as 16-bit integers, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_bfloat16(handle):
    return handle.dtype.scalar == tl.bfloat16


def _widened(handle):
    return interpreter.TensorHandle(to_float32(handle.data), tl.float32) if _is_bfloat16(handle) else handle


@cache
def repair():
    """Repairs the interpreter of this process, once."""
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self, a, b, *rest):
        return dot(self, _widened(a), _widened(b), *rest)

    def cast_impl(self, source, target):
        source = _widened(source)
        if target.scalar != tl.bfloat16:
            return cast(self, source, target)
        single = cast(self, source, tl.float32) if source.dtype.scalar != tl.float32 else source
        return interpreter.TensorHandle(to_bfloat16(single.data), tl.bfloat16)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    for name in ("unary_op", "binary_op"):
        setattr(builder, name, _refusing(getattr(builder, name)))


def _refusing(operation):
    def checked(self, *arguments):
        if any(map(_is_bfloat16, arguments[:-1])):
            raise NotImplementedError(f"{arguments[-1].__name__} on bfloat16: convert to float32 after the load")
        return operation(self, *arguments)

    return checked
