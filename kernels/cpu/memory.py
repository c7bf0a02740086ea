"""Memory besides tiles: integers at an address, and scratch on the stack."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .vector import I8, I64, Int

ALIGNMENT = 64  # bytes


@intrinsic(prefer_literal=True)
def integers(typing, address, count):
    """A tuple of `count`, a compile-time constant, 64-bit integers that lie at an address."""
    result = types.UniTuple(types.int64, count.literal_value)

    def generate(context, builder, signature, arguments):
        first = Int(builder, arguments[0])
        places = [builder.inttoptr((first + 8 * i).value, I64.as_pointer()) for i in range(result.count)]
        return cgutils.pack_array(builder, [builder.load(place, align=8) for place in places])

    return result(types.intp, count), generate


@intrinsic
def put(typing, address, value):
    """Writes a 64-bit integer to an address."""

    def generate(context, builder, signature, arguments):
        address, value = arguments
        builder.store(value, builder.inttoptr(address, I64.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.none(types.intp, types.intp), generate


@intrinsic(prefer_literal=True)
def scratch(typing, count):
    """The address of `count` bytes, a compile-time constant, that last as long as the calling function runs."""
    size = count.literal_value

    def generate(context, builder, signature, arguments):
        memory = cgutils.alloca_once(builder, ir.ArrayType(I8, size))
        memory.align = ALIGNMENT
        return builder.ptrtoint(memory, I64)

    return types.intp(count), generate
