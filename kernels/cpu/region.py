"""Calls of one kernel, taken one after another by the threads of a parallel region, without a word of Python.

The region's memory: a cache line of HEADER integers, the first of which counts the calls that are taken, then how many
there are and where the kernel's C entry is; then the calls, `count` integers each.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .atomics import fetch_add
from .inner import inner
from .memory import integers
from .vector import I8, I64

ARGUMENTS = ("calls",)
HEADER = 8  # integers


def build(count):
    """count: the kernel's arguments."""
    call = _call(count)

    @inner
    def run(calls):
        _, number, entry = integers(calls, 3)
        taken = fetch_add(calls, 1)
        while taken < number:
            call(entry, calls + 8 * (HEADER + count * taken))
            taken = fetch_add(calls, 1)

    return run


def _call(count):
    """A function that calls the C function at an address with the `count` integers at another."""

    @intrinsic
    def call(typing, entry, arguments):
        def generate(context, builder, signature, given):
            kind = ir.FunctionType(I8.as_pointer(), [I64] * count)
            first = builder.inttoptr(given[1], I64.as_pointer())
            values = [builder.load(builder.gep(first, [I64(i)]), align=8) for i in range(count)]
            builder.call(builder.inttoptr(given[0], kind.as_pointer()), values)
            return context.get_dummy_value()

        return types.none(types.intp, types.intp), generate

    return call
