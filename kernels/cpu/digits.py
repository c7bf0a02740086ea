"""Rows of float32 beside weights of int8, where the CPU multiplies groups of four bytes and adds them up.

Both operands of that instruction are bytes. So a block of a row is cut into three bytes for each element, its digits,

    x = s (65536 d_2 + 256 d_1 + d_0 - 2^22)

where s is the row's largest element over 2^22 - 2, and the weights are multiplied by each: nothing of them needs to be
widened, and the sums are exact. A row with an infinite element or a NaN gives NaN.

A block of a row's digits: [digit][group of four elements][4].
"""

from llvmlite import ir
from numba.core import cgutils

from .loops import loop
from .narrow import dot_bytes, splat
from .vector import I8, I32, I64, Int, Vector, call, fma

DIGITS = 3
BLOCK = 256  # groups
_DIGIT = 4 * BLOCK + 64  # bytes of a digit of a block, and room for a vector of it that is written past its end
_ROW = DIGITS * _DIGIT
_CENTRE = 1 << 22  # what makes the fixed-point numbers positive


def scratch(builder, tile):
    """The address of memory for a block of digits of the tile's rows."""
    place = cgutils.alloca_once(builder, ir.ArrayType(I8, tile.m * _ROW))
    return Int(builder, builder.ptrtoint(place, I64))


def scales(builder, tile, a, stride, count):
    """(s, 1 / s) in all lanes for each row at a, of `count` elements (i64)."""
    lanes, width = tile.lanes, tile.lanes.count
    smallest = lanes.constant_int(0x0D800000)  # 2^-100: of a row of zeros
    whole, found = builder.and_(count, I64(-width)), []
    for i in range(tile.m):
        row = a + stride * i * 4

        def largest(k, values, row=row, inside=None):
            bits = _read(builder, lanes, row + k * 4, inside).bits()
            bits = builder.and_(bits, lanes.constant_int(0x7FFFFFFF))  # NaN is above infinity
            return [call(builder, f"llvm.umax.v{width}i32", lanes.ints, values[0], bits)]

        bits = loop(builder, 0, whole, width, [smallest], largest)
        (bits,) = largest(Int(builder, whole), bits, inside=_below(builder, width, builder.sub(count, whole)))
        most = call(builder, f"llvm.vector.reduce.umax.v{width}i32", I32, bits)
        most = Vector(builder, lanes, builder.bitcast(splat(builder, lanes, most), lanes.floats))
        # The scale of a row that is not finite is NaN.
        found.append((fma(most, 0.0, most * (1 / (_CENTRE - 2))), (_CENTRE - 2.0) / most))
    return found


def cut(builder, tile, digits, a, stride, count, inverses):
    """Writes the digits of `count` elements (i64) of each row at a, at most a block. inverses: of each row's s."""
    lanes, width = tile.lanes, tile.lanes.count
    bytes_ = ir.VectorType(I8, width)
    # A number below 2^22 is rounded, and left in the lower bits, when this is added.
    magic = Vector(builder, lanes, lanes.constant(float((1 << 23) + _CENTRE)))

    def cut_vectors(k, _, inside=None):
        for i in range(tile.m):
            x = _read(builder, lanes, a + (stride * i + k) * 4, inside)
            bits = fma(x, inverses[i], magic).bits()
            for d in range(DIGITS):
                digit = builder.trunc(builder.lshr(bits, lanes.constant_int(8 * d)), bytes_)
                place = (digits + k + (i * _ROW + d * _DIGIT)).value
                builder.store(digit, builder.inttoptr(place, bytes_.as_pointer()), align=1)
        return []

    whole = builder.and_(count, I64(-width))
    loop(builder, 0, whole, width, [], cut_vectors)
    cut_vectors(Int(builder, whole), [], inside=_below(builder, width, builder.sub(count, whole)))


def emit(builder, tile, values, digits, _, b):
    """Whole numbers [row][vector][digit] plus a group of terms of a product: digits times the row of groups at b."""
    lanes = tile.lanes
    places = [(b + j * lanes.count * 4).value for j in range(tile.n)]
    row = [builder.load(builder.inttoptr(p, lanes.ints.as_pointer()), align=4) for p in places]
    values = list(values)
    for i in range(tile.m):
        for d in range(DIGITS):
            place = (digits + (i * _ROW + d * _DIGIT)).value
            digit = splat(builder, lanes, builder.load(builder.inttoptr(place, I32.as_pointer()), align=1))
            for j in range(tile.n):
                at = (i * tile.n + j) * DIGITS + d
                values[at] = dot_bytes(builder, lanes, values[at], digit, row[j])
    return values


def total(builder, tile, values, scales, columns):
    """The tile's vectors from the whole numbers. columns (Int): the address of the sums of the weights' columns."""
    lanes, floats = tile.lanes, []
    for i, (scale, _) in enumerate(scales):
        for j in range(tile.n):
            d_0, d_1, d_2 = values[(i * tile.n + j) * DIGITS :][:DIGITS]
            pointer = builder.inttoptr((columns + j * lanes.count * 4).value, lanes.floats.as_pointer())
            column = builder.fptosi(builder.load(pointer, align=4), lanes.ints)
            d_2 = builder.sub(d_2, builder.shl(column, lanes.constant_int(6)))  # 2^22 is 64 of this digit
            low, middle, high = (Vector(builder, lanes, builder.sitofp(d, lanes.floats)) for d in (d_0, d_1, d_2))
            floats.append((fma(high, 65536.0, fma(middle, 256.0, low)) * scale).value)
    return floats


def _below(builder, width, count):
    """The lanes whose index is below `count` (i64)."""
    wide = ir.VectorType(I64, width)
    one = builder.insert_element(ir.Constant(wide, ir.Undefined), count, I32(0))
    limit = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, width), [0] * width))
    return builder.icmp_signed("<", ir.Constant(wide, list(range(width))), limit)


def _read(builder, lanes, address, inside):
    """The vector at an address; lanes outside a mask, where there is one, are not read and give zero."""
    pointer = builder.inttoptr(address.value, lanes.floats.as_pointer())
    if inside is None:
        return Vector(builder, lanes, builder.load(pointer, align=4))
    name, zero = f"llvm.masked.load.{lanes.suffix}.p0", lanes.constant(0.0)
    return Vector(builder, lanes, call(builder, name, lanes.floats, pointer, I32(4), inside, zero))
