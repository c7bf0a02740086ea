"""The inner loop of every matrix product, and the split of rows into register tiles."""

from functools import partial

from numba.core import types
from numba.extending import intrinsic

from . import digits, narrow, target
from .inner import inner
from .loops import either, in_blocks, loop
from .tiles import Tile, emit_outer, emit_prefetch, pack, unpack
from .vector import I64, Int

_AHEAD = 256  # bytes: how far ahead a lone row asks for its weights; far ones get in the way of the processor's own
LINE = 64  # bytes of a cache line
_FEW = 2  # rows that meet weights of int8 as digits: for more, widened weights serve them all
# Terms added up in one go, fewer where each is of several float32: the rounding errors of a sum grow with its length,
# those of a sum of sums less.
BLOCK = 256


def accumulator(pairs):
    """A function accumulate(acc, a, stride, K, b, ahead): acc (m rows, n vectors) += a (m, K terms; rows `stride`
    elements apart) times packed b (K, n W). A term is an element or, with `pairs`, two of bfloat16.

    A tile of many rows asks for a line of memory a term, from `ahead` on: what its successors will need.
    """
    emit = narrow.emit_pairs if pairs else emit_outer

    @intrinsic
    def accumulate(typing, acc, a, stride, K, b, ahead):
        def generate(context, builder, signature, arguments):
            array, a, stride, K, b, ahead = arguments
            a, stride, b, ahead = (Int(builder, v) for v in (a, stride, b, ahead))
            values = unpack(builder, acc, array)
            return pack(builder, acc, _emit_product(builder, acc, emit, acc.size, values, a, stride, K, b, ahead))

        return acc(acc, *[types.intp] * 5), generate

    return accumulate


@intrinsic(prefer_literal=True)
def product(typing, m, n, size, stored, weight, a, stride, K, b, ahead, columns):
    """A tile of a times b, as in `accumulator`, summed in blocks. m, n, size, and the bytes of an element of a and
    of b are compile-time constants. A term is as many elements of b as fill a lane: a pair where a is bfloat16, a group
    of narrow weights beside float32. columns: address of the sums of b's columns, of int8 weights."""
    tile = Tile(m.literal_value, n.literal_value, size.literal_value)
    row_bytes, weight_bytes = stored.literal_value, weight.literal_value

    def generate(context, builder, signature, arguments):
        *places, columns = (Int(builder, v) for v in arguments[5:])
        if row_bytes != weight_bytes:
            emit = partial(narrow.emit_widened, weight=weight_bytes)
        else:
            emit = narrow.emit_pairs if row_bytes == narrow.BFLOAT16 else emit_outer
        run = partial(_of_terms, builder, emit=emit, stored=row_bytes, together=tile.size // weight_bytes)
        if weight_bytes == narrow.INT8 and tile.m <= _FEW and target.current().dots_bytes:
            return pack(builder, tile, _by_bytes(builder, tile, run, *places, columns))
        return pack(builder, tile, run(tile, *places))

    return tile(m, n, size, stored, weight, *[types.intp] * 6), generate


def _of_terms(builder, tile, a, stride, count, b, ahead, emit, stored, together):
    """The product of `count` elements, `together` of them to a term; emit(..., only=place): one of a term alone."""
    term, row = stored * together, _row(tile)
    K, zeros = builder.lshr(count.value, I64(together.bit_length() - 1)), _zeros(tile)

    def block(k, terms, total):
        here = a + k * term, stride, terms, b + k * row, ahead + k * LINE
        return _sum(builder, total, _emit_product(builder, tile, emit, term, zeros, *here))

    def lone(place, total):
        here = a + Int(builder, K) * term + place * stored, stride, b + Int(builder, K) * row
        return emit(builder, tile, total, *here, only=place.value)

    total = in_blocks(builder, K, BLOCK * tile.size // term, zeros, block)
    if together > 1:
        total = loop(builder, 0, builder.and_(count.value, I64(together - 1)), 1, total, lone)
    return total


def _by_bytes(builder, tile, widened, a, stride, count, b, ahead, columns):
    """The product of `count` elements with weights of int8: of each row alone by its digits if it may be cut, else
    `widened`."""
    one, values = Tile(1, tile.n, tile.size), []
    for i in range(tile.m):
        row = a + stride * (4 * i)
        largest = digits.largest_of(builder, one.lanes, row, count.value)
        cut = partial(_by_digits, builder, one, row, count, b, columns, largest)
        otherwise = partial(widened, one, row, stride, count, b, ahead)
        values += either(builder, digits.may_be_cut(builder, largest), cut, otherwise)
    return values


def _by_digits(builder, tile, a, count, b, columns, largest):
    place, row = digits.scratch(builder), _row(tile)
    scale, inverse = digits.scale(builder, tile.lanes, largest)

    def block(k, groups, total):
        left, most = (count - k * 4).value, builder.mul(groups, I64(4))
        elements = builder.select(builder.icmp_signed("<", left, most), left, most)
        digits.cut(builder, tile.lanes, place, a + k * 16, elements, inverse)
        here = place, count, groups, b + k * row, b  # one row has no stride, and asks for no other memory
        return _emit_product(builder, tile, digits.emit, tile.size, total, *here, chains=1)

    zeros = [tile.lanes.constant_int(0)] * (tile.n * digits.DIGITS)
    sums = in_blocks(builder, builder.lshr((count + 3).value, I64(2)), digits.BLOCK, zeros, block)
    return digits.total(builder, tile, sums, scale, columns)


def _row(tile):
    """Bytes of a term's row of b."""
    return tile.n * tile.lanes.count * tile.size


def _zeros(tile):
    return [tile.lanes.constant(0.0)] * (tile.m * tile.n)


def _emit_product(builder, tile, emit, term, values, a, stride, K, b, ahead, chains=None):
    """The vectors `values` plus the product of K terms (i64), emit being one of them and `term` the bytes of a that it
    takes; a, stride, b and ahead are Ints.

    Few accumulators would leave the multipliers waiting for their own results, so small tiles add up in 2 or 4 chains;
    a lone row also asks for its weights ahead, every other line: the processor fetches lines in pairs.
    """
    chains, count, row = chains or _chains(tile), len(values), _row(tile)

    def terms(k, values):
        if tile.m == 1:
            for line in range(0, chains * row, 2 * LINE):
                emit_prefetch(builder, b + k * row + (_AHEAD + line))
        elif chains == 1:
            emit_prefetch(builder, ahead + k * LINE)
        return [
            v
            for chain in range(chains)
            for v in emit(
                builder, tile, values[chain * count : (chain + 1) * count],
                a + (k + chain) * term, stride, b + (k + chain) * row,
            )
        ]  # fmt: skip

    def term_of(k, values):
        return emit(builder, tile, values, a + k * term, stride, b + k * row)

    if chains == 1:
        return loop(builder, 0, K, 1, values, terms)
    whole = builder.and_(K, I64(-chains))
    sums = loop(builder, 0, whole, chains, [*values, *_zeros(tile) * (chains - 1)], terms)
    while len(sums) > count:
        half = len(sums) // 2
        sums = _sum(builder, sums[:half], sums[half:])
    return loop(builder, whole, K, 1, sums, term_of)


def _chains(tile):
    spare = target.current().registers * 3 // 4 // (tile.m * tile.n)
    return 4 if spare >= 4 else 2 if spare >= 2 else 1


def _sum(builder, xs, ys):
    return [builder.fadd(x, y) for x, y in zip(xs, ys)]


def by_rows(make, n):
    """A function (first, last, B, arguments) that runs make(m)'s `tile(row, arguments)` over rows first ... last - 1.

    The B rows are cut into tiles of `target.rows(n)`, then 4, 2 and 1. The cut depends on B alone: `first` and `last`
    must be on it, and the same row is then summed in the same order whoever computes it.
    """
    M = target.current().rows(n)
    most, four, two, one = make(M), make(min(4, M)), make(min(2, M)), make(1)

    @inner
    def run(first, last, B, arguments):
        row = first
        while row + M <= last:
            most(row, arguments)
            row += M
        if M > 4:
            while row + 4 <= last:
                four(row, arguments)
                row += 4
        if M > 2:
            while row + 2 <= last:
                two(row, arguments)
                row += 2
        while row < last:
            one(row, arguments)
            row += 1

    return run
