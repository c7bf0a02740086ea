"""Elements narrower in memory than the lanes they compute in: bfloat16, and weights that are bfloat16 or int8.

Where both operands of a product are bfloat16, they are pairs of consecutive terms in 32 bits: packed weights
[pair][n W][2], and rows as they lie. The CPU's own instruction (AVX512-BF16) multiplies a pair and adds it up;
elsewhere the halves are widened, two integer operations a vector of weights and pair, and added one after the other.
Both flush denormals.

Narrow weights beside float32 rows are groups of consecutive terms in 32 bits as well, [group][n W][2 or 4]. They are
widened, one after the other, or meet few rows as bytes (digits.py).
"""

from llvmlite import ir

from . import target
from .vector import I16, I32, Vector, below, call, fma, pointer, splat

BFLOAT16, INT8 = 2, 1  # bytes


class _BFloat(ir.types._BaseFloatType):
    """LLVM's bfloat, which llvmlite does not have: operands of the instruction, never constants."""

    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"


_BFloat._create_instance()


def load(builder, lanes, address, mask=None):
    """A vector of bfloat16 at an address as a Vector of float32; zero outside the mask."""
    kind = ir.VectorType(I16, lanes.count)
    place = pointer(builder, address, kind)
    if mask is None:
        halves = builder.load(place, align=BFLOAT16)
    else:
        zero = ir.Constant(kind, [0] * lanes.count)
        name = f"llvm.masked.load.v{lanes.count}i16.p0"
        halves = call(builder, name, kind, place, I32(BFLOAT16), mask.value, zero)
    return _lower(builder, lanes, builder.zext(halves, lanes.ints))


def store(vector, address, mask=None):
    """Write a float32 Vector as bfloat16, rounded to nearest, ties to even. A NaN stays one: those of the kernels have
    nothing in the lower half, to carry over into the sign."""
    builder, lanes = vector.builder, vector.lanes
    kind = ir.VectorType(I16, lanes.count)
    halves = builder.trunc(builder.lshr(_rounded(vector), lanes.constant_int(16)), kind)
    place = pointer(builder, address, kind)
    if mask is None:
        builder.store(halves, place, align=BFLOAT16)
    else:
        name = f"llvm.masked.store.v{lanes.count}i16.p0"
        call(builder, name, ir.VoidType(), halves, place, I32(BFLOAT16), mask.value)


def _rounded(vector):
    """The bits of float32, of which the upper half is bfloat16."""
    builder, lanes, bits = vector.builder, vector.lanes, vector.bits()
    odd = builder.and_(builder.lshr(bits, lanes.constant_int(16)), lanes.constant_int(1))
    return builder.add(bits, builder.add(odd, lanes.constant_int(0x7FFF)))


def load_pairs(builder, lanes, address, count=None):
    """A vector of pairs as they lie, for a Vector to carry; zeros beyond `count` elements (an i64; None: all)."""
    width = 2 * lanes.count
    kind = ir.VectorType(I16, width)
    place = pointer(builder, address, kind)
    if count is None:
        pairs = builder.load(place, align=BFLOAT16)
    else:
        name, zero = f"llvm.masked.load.v{width}i16.p0", ir.Constant(kind, [0] * width)
        pairs = call(builder, name, kind, place, I32(BFLOAT16), below(builder, count, width, I16), zero)
    return Vector(builder, lanes, builder.bitcast(pairs, lanes.floats))


def pair(low, high):
    """Two Vectors of float32 as one of pairs, rounded as in `store`."""
    builder, lanes = low.builder, low.lanes
    if not target.current().dots_bfloat16:
        return join(low.from_bits(_rounded(low)), high.from_bits(_rounded(high)))
    order = [x for i in range(lanes.count) for x in (i, i + lanes.count)]
    pairs = _chosen(builder, _round_two(low, high), order)
    return Vector(builder, lanes, builder.bitcast(pairs, lanes.floats))


def store_two(low, high, p, q):
    """Write two float32 Vectors as bfloat16 at p and q (i64), rounded as in `pair`, with which this shares the work."""
    if not target.current().dots_bfloat16:
        store(low, p)
        store(high, q)
        return
    builder, count = low.builder, low.lanes.count
    both, kind = _round_two(low, high), ir.VectorType(I16, count)
    for first, address in ((0, p), (count, q)):
        half = _chosen(builder, both, range(first, first + count))
        builder.store(half, pointer(builder, address, kind), align=BFLOAT16)


def _round_two(low, high):
    """By the instruction: 16-bit integers, those of low first."""
    builder, width = low.builder, 2 * low.lanes.count
    name = f"llvm.x86.avx512bf16.cvtne2ps2bf16.{16 * width}"
    both = call(builder, name, ir.VectorType(_BFloat(), width), high.value, low.value)
    return builder.bitcast(both, ir.VectorType(I16, width))


def _chosen(builder, vector, order):
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def join(low, high):
    """Two Vectors of float32 as one of pairs, cut off: of bfloat16 that were widened."""
    builder, lanes = low.builder, low.lanes
    upper = builder.and_(high.bits(), lanes.constant_int(-1 << 16))
    return low.from_bits(builder.or_(builder.lshr(low.bits(), lanes.constant_int(16)), upper))


def first_of(pairs):
    """Pairs of the first element and zero."""
    return pairs.from_bits(pairs.builder.and_(pairs.bits(), pairs.lanes.constant_int(0xFFFF)))


def dot(x, y, total):
    """The products of pairs, added to a Vector of float32 lane by lane."""
    builder, lanes = total.builder, total.lanes
    multiply = _dot if target.current().dots_bfloat16 else _widened
    return total.new(multiply(builder, lanes, total.value, *(builder.bitcast(v.value, lanes.ints) for v in (x, y))))


def emit_pairs(builder, tile, values, a, stride, b, only=None):
    """The tile's vectors `values` plus a pair of terms of a product: pairs at a (rows `stride` elements apart) times
    the row of pairs at b. only: not None where of a pair at a only the first is there, and read."""
    lanes, single = tile.lanes, only is not None
    half = I16 if single else I32
    width = lanes.count * tile.size
    row = [_integers(builder, lanes, (b + j * width).value) for j in range(tile.n)]
    multiply = _dot if target.current().dots_bfloat16 else _widened
    result = []
    for i in range(tile.m):
        pair = builder.load(pointer(builder, (a + stride * (i * BFLOAT16)).value, half), align=BFLOAT16)
        pair = splat(builder, builder.zext(pair, I32) if single else pair, lanes.count)
        result += [multiply(builder, lanes, values[i * tile.n + j], pair, row[j]) for j in range(tile.n)]
    return result


def emit_widened(builder, tile, values, a, stride, b, weight, only=None):
    """The tile's vectors `values` plus a group of terms of a product: float32 at a (rows `stride` elements apart) times
    the row of groups at b, of weights of `weight` bytes. only (i64): the one term of the group, the first at a."""
    lanes = tile.lanes
    row = [_integers(builder, lanes, (b + j * lanes.count * 4).value) for j in range(tile.n)]
    for k in range(4 // weight if only is None else 1):
        place = I32(k) if only is None else builder.trunc(only, I32)
        wide = [_element(builder, lanes, groups, place, weight) for groups in row]
        result = []
        for i in range(tile.m):
            factor = builder.load(pointer(builder, (a + (stride * i + k) * 4).value, lanes.element), align=4)
            factor = Vector(builder, lanes, splat(builder, factor, lanes.count))
            values_ = values[i * tile.n : (i + 1) * tile.n]
            result += [fma(factor, w, Vector(builder, lanes, v)).value for w, v in zip(wide, values_)]
        values = result
    return values


def _element(builder, lanes, groups, place, weight):
    """The elements at a place (i32) of groups of weights, as a Vector of float32."""
    bits = builder.shl(builder.sub(I32(4 // weight - 1), place), I32(3 + weight // 2))
    upper = builder.shl(groups, splat(builder, bits, lanes.count))
    if weight == BFLOAT16:
        upper = builder.and_(upper, lanes.constant_int(-1 << 16))
        return Vector(builder, lanes, builder.bitcast(upper, lanes.floats))
    return Vector(builder, lanes, builder.sitofp(builder.ashr(upper, lanes.constant_int(24)), lanes.floats))


def _dot(builder, lanes, acc, pair, row):
    pairs = ir.VectorType(_BFloat(), 2 * lanes.count)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{lanes.count * 32}"
    return call(builder, name, lanes.floats, acc, builder.bitcast(pair, pairs), builder.bitcast(row, pairs))


def dot_bytes(builder, lanes, acc, group, row):
    """Sums of integers plus the products of groups of four bytes, those of `group` without a sign."""
    name = f"llvm.x86.avx512.vpdpbusd.{lanes.count * 32}"
    return call(builder, name, lanes.ints, acc, group, row)


def _widened(builder, lanes, acc, pair, row):
    total = Vector(builder, lanes, acc)
    upper = lanes.constant_int(-1 << 16)
    total = fma(_lower(builder, lanes, pair), _lower(builder, lanes, row), total)
    return fma(*(total.from_bits(builder.and_(pairs, upper)) for pairs in (pair, row)), total).value


def _lower(builder, lanes, ints):
    """The lower 16 bits of each lane as a float32."""
    return Vector(builder, lanes, builder.bitcast(builder.shl(ints, lanes.constant_int(16)), lanes.floats))


def _integers(builder, lanes, address):
    return builder.load(pointer(builder, address, lanes.ints), align=BFLOAT16)
