"""A row of float32 beside weights of int8, where the CPU multiplies groups of four bytes and adds them up.

Both operands of that instruction are bytes. So a block of the row is cut into three bytes for each element, its digits,

    x = s (65536 d_2 + 256 d_1 + d_0 - 2^22)

where s is the row's largest element over 2^22 - 2, and the weights are multiplied by each: nothing of them needs to be
widened, and the sums are exact. x is rounded by up to s / 2, so that a very large element would take the others' bits:
only a row whose elements are at most LARGEST is cut, and the rounding errors are those of float32 numbers near it.

A block's digits: [digit][group of four elements][4]. Below, a tile is one row of n vectors.
"""

from llvmlite import ir
from numba.core import cgutils

from .loops import loop
from .narrow import dot_bytes
from .vector import I8, I32, I64, Int, Mask, Vector, below, call, fma, load_vector, pointer, splat

DIGITS = 3
BLOCK = 256  # groups
LARGEST = 16.0
_DIGIT = 4 * BLOCK + 64  # bytes of a digit of a block, and room for a vector of it that is written past its end
_CENTRE = 1 << 22  # what makes the fixed-point numbers positive


def scratch(builder):
    """The address of memory for a block's digits."""
    place = cgutils.alloca_once(builder, ir.ArrayType(I8, DIGITS * _DIGIT))
    return Int(builder, builder.ptrtoint(place, I64))


def largest_of(builder, lanes, a, count):
    """The largest of `count` elements (i64) at a without its sign, and 2^-100 at least, as the bits of a float32 (i32):
    a NaN is larger than all numbers."""
    width, smallest = lanes.count, lanes.constant_int(0x0D800000)
    whole = builder.and_(count, I64(-width))

    def larger(k, values, inside=None):
        vector = load_vector(builder, lanes, (a + k * 4).value, inside)
        bits = builder.and_(vector.bits(), lanes.constant_int(0x7FFFFFFF))
        return [call(builder, f"llvm.umax.v{width}i32", lanes.ints, values[0], bits)]

    bits = loop(builder, 0, whole, width, [smallest], larger)
    (bits,) = larger(Int(builder, whole), bits, inside=_rest(builder, count, whole, width))
    return call(builder, f"llvm.vector.reduce.umax.v{width}i32", I32, bits)


def may_be_cut(builder, largest):
    """Whether no element is above LARGEST (i1)."""
    return builder.icmp_unsigned("<=", largest, ir.Constant(ir.FloatType(), LARGEST).bitcast(I32))


def scale(builder, lanes, largest):
    """(s, 1 / s) in all lanes."""
    most = Vector(builder, lanes, builder.bitcast(splat(builder, largest, lanes.count), lanes.floats))
    return most * (1 / (_CENTRE - 2)), (_CENTRE - 2.0) / most


def cut(builder, lanes, digits, a, count, inverse):
    """Writes the digits of `count` elements (i64) at a, at most a block. inverse: 1 / s."""
    width, bytes_ = lanes.count, ir.VectorType(I8, lanes.count)
    # A number below 2^22 is rounded, and left in the lower bits, when this is added.
    magic = Vector(builder, lanes, lanes.constant(float((1 << 23) + _CENTRE)))

    def cut_vector(k, _, inside=None):
        bits = fma(load_vector(builder, lanes, (a + k * 4).value, inside), inverse, magic).bits()
        for d in range(DIGITS):
            digit = builder.trunc(builder.lshr(bits, lanes.constant_int(8 * d)), bytes_)
            place = (digits + k + d * _DIGIT).value
            builder.store(digit, pointer(builder, place, bytes_), align=1)
        return []

    whole = builder.and_(count, I64(-width))
    loop(builder, 0, whole, width, [], cut_vector)
    cut_vector(Int(builder, whole), [], inside=_rest(builder, count, whole, width))


def emit(builder, tile, values, digits, _, b):
    """Whole numbers [vector][digit] plus a group of terms of a product: digits times the row of groups at b."""
    lanes, result = tile.lanes, []
    places = [(digits + d * _DIGIT).value for d in range(DIGITS)]
    group = [builder.load(pointer(builder, p, I32), align=1) for p in places]
    group = [splat(builder, digit, lanes.count) for digit in group]
    for j in range(tile.n):
        weights = builder.load(pointer(builder, (b + j * lanes.count * 4).value, lanes.ints), align=4)
        sums = values[j * DIGITS : (j + 1) * DIGITS]
        result += [dot_bytes(builder, lanes, s, digit, weights) for s, digit in zip(sums, group)]
    return result


def total(builder, tile, values, scale, columns):
    """The tile's vectors from the whole numbers. columns (Int): the address of the sums of the weights' columns."""
    lanes, floats = tile.lanes, []
    for j in range(tile.n):
        d_0, d_1, d_2 = values[j * DIGITS : (j + 1) * DIGITS]
        column = load_vector(builder, lanes, (columns + j * lanes.count * 4).value)
        column = builder.fptosi(column.value, lanes.ints)
        d_2 = builder.sub(d_2, builder.shl(column, lanes.constant_int(6)))  # 2^22 is 64 of this digit
        low, middle, high = (Vector(builder, lanes, builder.sitofp(d, lanes.floats)) for d in (d_0, d_1, d_2))
        floats.append((fma(high, 65536.0, fma(middle, 256.0, low)) * scale).value)
    return floats


def _rest(builder, count, whole, width):
    """The Mask of the elements of the last vector, of `count` of which `whole` came before it (both i64)."""
    return Mask(builder, below(builder, builder.sub(count, whole), width))
