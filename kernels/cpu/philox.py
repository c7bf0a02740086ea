"""Dropout's generator in vector registers: `kernels.dropout` says which numbers belong to which weight.

A word of 32 bits has a lane of 64, in which its product with another is one instruction, and both halves of that are at
hand. Operations for the eight weights of W queries: 7 rounds of 2 products, 2 shifts and 4 exclusive ors on twice the
vectors in float32, then 4 words taken apart and 8 comparisons.
"""

from llvmlite import ir

from ..dropout import MULTIPLIERS, ROUNDS, WEYL
from . import target
from .inner import inner
from .tiles import store, tile_op, zeros
from .vector import I64, Mask, select, splat

EIGHT = 8  # weights of one call
_WORD = 0xFFFFFFFF


def multipliers(n, size):
    """What dropout multiplies the weights of a block by: kept[key][query], for `count` keys up to a whole eight."""
    W = target.current().lanes(size)

    @inner
    def draw(dropped, t, start, count, kept):
        """dropped: seed, threshold, where the multiplier of a kept weight lies, head b N + n; start: a whole eight."""
        seed, threshold, rescale, head = dropped
        for i in range(0, count, EIGHT):
            for j in range(n):
                place = (seed, threshold, rescale, (start + i) // EIGHT, t + j * W, head)
                store(_multipliers(zeros(EIGHT, 1, size), place), kept + size * W * (n * i + j), n * W)

    return draw


@tile_op
def _multipliers(frame):
    """(seed, threshold, rescale, eighth, query, head) -> eight keys' multipliers, the queries from `query` on."""
    seed, threshold, rescale, *counter = frame.integers
    builder, kind = frame.builder, ir.VectorType(I64, frame.width)
    eighth, query, head = (splat(builder, x.value, frame.width) for x in counter)
    query = builder.add(query, ir.Constant(kind, list(range(frame.width))))
    key = builder.and_(seed.value, I64(_WORD)), builder.lshr(seed.value, I64(32))
    words = philox(builder, (eighth, query, head, ir.Constant(kind, [0] * frame.width)), key)
    least, factor = splat(builder, threshold.value, frame.width), frame.broadcast(rescale)
    low, half = (ir.Constant(kind, [x] * frame.width) for x in (0xFFFF, 16))
    numbers = [number for word in words for number in (builder.and_(word, low), builder.lshr(word, half))]
    for row, number in zip(frame.tile, numbers):
        row[0] = select(Mask(builder, builder.icmp_unsigned(">=", number, least)), factor, 0.0)


def philox(builder, counter, key):
    """The four words of Philox4x32 of a counter of four under a key of two, which are scalars; 32 bits in 64."""
    kind = counter[0].type
    word, high = (ir.Constant(kind, [x] * kind.count) for x in (_WORD, 32))
    multipliers = [ir.Constant(kind, [x] * kind.count) for x in MULTIPLIERS]
    c0, c1, c2, c3 = (builder.and_(c, word) for c in counter)
    for _ in range(ROUNDS):
        a, b = builder.mul(c0, multipliers[0]), builder.mul(c2, multipliers[1])
        keys = [splat(builder, k, kind.count) for k in key]
        c0 = builder.xor(builder.xor(builder.lshr(b, high), c1), keys[0])
        c2 = builder.xor(builder.xor(builder.lshr(a, high), c3), keys[1])
        c1, c3 = builder.and_(b, word), builder.and_(a, word)
        key = [builder.and_(builder.add(k, I64(step)), I64(_WORD)) for k, step in zip(key, WEYL)]
    return c0, c1, c2, c3
