"""The inner loop of every matrix product, and the split of rows into register tiles."""

from functools import partial

from numba.core import types
from numba.extending import intrinsic

from . import narrow, target
from .inner import inner
from .tiles import Tile, emit_outer, emit_prefetch, pack, unpack
from .vector import I64, Int

_AHEAD = 256  # bytes: how far ahead a lone row asks for its weights; far ones get in the way of the processor's own
LINE = 64  # bytes of a cache line
BLOCK = 256  # terms added up in one go: the rounding errors of a sum grow with its length, those of a sum of sums less


def accumulator(pairs):
    """A function accumulate(acc, a, stride, K, b, ahead): acc (m rows, n vectors) += a (m, K terms; rows `stride`
    elements apart) times packed b (K, n W). A term is an element or, with `pairs`, two of bfloat16.

    A tile of many rows asks for a line of memory a term, from `ahead` on: what its successors will need.
    """
    emit = narrow.emit_pairs if pairs else emit_outer

    @intrinsic
    def accumulate(typing, acc, a, stride, K, b, ahead):
        def generate(context, builder, signature, arguments):
            array, *operands = arguments
            row = acc.n * acc.lanes.count * acc.size
            return pack(builder, acc, _emit_product(builder, acc, emit, row, unpack(builder, acc, array), *operands))

        return acc(acc, *[types.intp] * 5), generate

    return accumulate


@intrinsic(prefer_literal=True)
def product(typing, m, n, size, stored, weight, a, stride, K, b, ahead):
    """A tile of a times b, as in `accumulator`, summed in blocks of BLOCK terms. m, n, size, and the bytes of an
    element of a and of what a lane reads of b at a term, are compile-time constants. A term is a pair where a is
    bfloat16."""
    tile = Tile(m.literal_value, n.literal_value, size.literal_value)
    row = tile.n * tile.lanes.count * weight.literal_value
    pairs = stored.literal_value == narrow.BFLOAT16
    emit = narrow.emit_pairs if pairs else partial(emit_outer, weight=weight.literal_value)

    def generate(context, builder, signature, arguments):
        a, stride, count, b, ahead = arguments[5:]
        K = builder.lshr(count, I64(1)) if pairs else count
        zeros = [tile.lanes.constant(0.0)] * (tile.m * tile.n)

        def block(k, total):
            left = builder.sub(K, k.value)
            terms = builder.select(builder.icmp_signed("<", left, I64(BLOCK)), left, I64(BLOCK))
            here = [(Int(builder, p) + k * bytes_).value for p, bytes_ in ((a, tile.size), (b, row), (ahead, LINE))]
            sums = _emit_product(builder, tile, emit, row, zeros, here[0], stride, terms, *here[1:])
            return _sum(builder, total, sums)

        def lone(_, total):
            places = (Int(builder, a) + Int(builder, K) * tile.size, Int(builder, stride))
            return emit(builder, tile, total, *places, Int(builder, b) + Int(builder, K) * row, single=True)

        total = _loop(builder, 0, K, BLOCK, zeros, block)
        if pairs:
            total = _loop(builder, 0, builder.and_(count, I64(1)), 1, total, lone)
        return pack(builder, tile, total)

    return tile(m, n, size, stored, weight, *[types.intp] * 5), generate


def _emit_product(builder, tile, emit, row, values, a, stride, K, b, ahead):
    """The vectors `values` plus the product, `emit` being one term of it and `row` the bytes of b that it reads.

    Few accumulators would leave the multipliers waiting for their own results, so small tiles add up in 2 or 4 chains;
    a lone row also asks for its weights ahead, every other line: the processor fetches lines in pairs.
    """
    a, stride, b, ahead = (Int(builder, v) for v in (a, stride, b, ahead))
    chains = _chains(tile)
    count = tile.m * tile.n

    def terms(k, values):
        if tile.m == 1:
            for line in range(0, chains * row, 2 * LINE):
                emit_prefetch(builder, b + k * row + (_AHEAD + line))
        return [
            v
            for chain in range(chains)
            for v in emit(
                builder, tile, values[chain * count : (chain + 1) * count],
                a + (k + chain) * tile.size, stride, b + (k + chain) * row,
            )
        ]  # fmt: skip

    def term(k, values):
        if chains == 1:
            emit_prefetch(builder, ahead + k * LINE)
        return emit(builder, tile, values, a + k * tile.size, stride, b + k * row)

    if chains == 1:
        return _loop(builder, 0, K, 1, values, term)
    whole = builder.and_(K, I64(-chains))
    zeros = [tile.lanes.constant(0.0)] * (count * (chains - 1))
    sums = _loop(builder, 0, whole, chains, [*values, *zeros], terms)
    while len(sums) > count:
        half = len(sums) // 2
        sums = _sum(builder, sums[:half], sums[half:])
    return _loop(builder, whole, K, 1, sums, term)


def _chains(tile):
    spare = target.current().registers * 3 // 4 // (tile.m * tile.n)
    return 4 if spare >= 4 else 2 if spare >= 2 else 1


def _sum(builder, xs, ys):
    return [builder.fadd(x, y) for x, y in zip(xs, ys)]


def _loop(builder, start, stop, step, values, body):
    """for k in range(start, stop, step): values = body(k, values); gives the last values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    phis = [builder.phi(v.type) for v in values]
    builder.cbranch(builder.icmp_signed("<", k, stop), inside, after)
    builder.position_at_end(inside)
    results = body(Int(builder, k), phis)
    k.add_incoming(I64(start) if isinstance(start, int) else start, before)
    k.add_incoming(builder.add(k, I64(step)), builder.block)
    for phi, first, later in zip(phis, values, results):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


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
