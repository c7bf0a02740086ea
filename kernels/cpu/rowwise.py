"""Operations on a row of scores that lies along the lanes, for attention of a few queries.

A `record` of a row is two vectors, its highest score in every lane and the lanes' sums of exponentials, and then the
sums of the values.
"""

from llvmlite import ir

from .softmax import exp, reciprocal, reference
from .tiles import tile_op
from .vector import I32, fma, maximum, select


@tile_op
def empty(frame):
    """(record,) of no keys: highest -inf, sums of 0."""
    (record,) = frame.integers
    frame.store(frame.constant("-inf"), record)
    frame.store(frame.constant(0.0), record + frame.width * frame.lanes.size)


@tile_op
def raised(frame):
    """(p,): the larger of the tile and the scores at p. A NaN there is left to the exponentials."""
    (p,) = frame.integers
    frame.tile[0][0] = maximum(frame.load(p), frame.tile[0][0])


@tile_op
def across(frame):
    """The largest lane, in every lane."""
    frame.tile[0][0] = _butterfly(frame.tile[0][0], maximum)


def _butterfly(x, combine):
    """Every lane combined with all others, in a fixed order."""
    distance = x.lanes.count // 2
    while distance:
        indices = ir.Constant(ir.VectorType(I32, x.lanes.count), [i ^ distance for i in range(x.lanes.count)])
        x = combine(x, x.new(x.builder.shuffle_vector(x.value, x.value, indices)))
        distance //= 2
    return x


@tile_op
def advance(frame):
    """(record, scale): with the tile as the new highest score, scale the sums of exponentials; the scale is stored."""
    record, scale = frame.integers
    highest, sums = record, record + frame.width * frame.lanes.size
    new = frame.tile[0][0]
    alpha = exp(frame.load(highest) - reference(new))
    frame.store(new, highest)
    frame.store(frame.load(sums) * alpha, sums)
    frame.store(alpha, scale)


@tile_op
def exponential(frame):
    """(p, record): scores to exponentials in place, added to the sums."""
    p, record = frame.integers
    sums = record + frame.width * frame.lanes.size
    value = exp(frame.load(p) - reference(frame.load(record)))
    frame.store(value, p)
    frame.store(frame.load(sums) + value, sums)


def multiply(count, stored):
    """(k, stride, q): add `count` vectors of q times those of every row of k, row by row as they lie in memory.
    stored, here and below: bytes of an element there."""

    @tile_op
    def op(frame):
        k, stride, q = frame.integers
        width, size = frame.width, frame.lanes.size
        query = [frame.load(q + j * width * size) for j in range(count)]
        for i in range(frame.m):
            row = k + stride * (i * stored)
            for j in range(count):
                key = frame.load(row + j * width * stored, stored=stored)
                frame.tile[i][0] = fma(key, query[j], frame.tile[i][0])

    return op


def multiply_part(stored):
    """`multiply` by one vector with (..., rows, columns) of k: nothing outside them is read."""

    @tile_op
    def op(frame):
        k, stride, q, rows, columns = frame.integers
        query = frame.load(q)
        for i in range(frame.m):
            inside = frame.below(columns) & frame.below((rows - i) * frame.width)
            frame.tile[i][0] = fma(frame.load(k + stride * (i * stored), inside, stored), query, frame.tile[i][0])

    return op


@tile_op
def store_sums(frame):
    """(p, count) of a W x 1 tile: lane i gets the sum of row i; -inf in the lanes from count on.

    A round adds the halves of rows i and i + rows / 2, interleaved, so that the last row has every sum in its place.
    """
    p, count = frame.integers
    builder, width = frame.builder, frame.width
    halves = [[x for i in range(width // 2) for x in (i + h, i + h + width)] for h in (0, width // 2)]
    low, high = (ir.Constant(ir.VectorType(I32, width), half) for half in halves)
    rows = [row[0] for row in frame.tile]
    while len(rows) > 1:
        pairs = zip(rows[: len(rows) // 2], rows[len(rows) // 2 :])
        parts = [[a.new(builder.shuffle_vector(a.value, b.value, half)) for half in (low, high)] for a, b in pairs]
        rows = [a + b for a, b in parts]
    frame.store(select(frame.below(count), rows[0], float("-inf")), p)


def outer_part(stored):
    """(a, stride, b, columns): one step of a product, as `tiles.outer`, with only the first columns at b."""

    @tile_op
    def op(frame):
        a, stride, b, columns = frame.integers
        inside = [frame.below(columns - j * frame.width) if frame.n == 1 else None for j in range(frame.n)]
        row = [frame.load(b + j * frame.width * stored, inside[j], stored) for j in range(frame.n)]
        for i in range(frame.m):
            factor = frame.broadcast(a + stride * (i * frame.lanes.size))
            for j in range(frame.n):
                frame.tile[i][j] = fma(factor, row[j], frame.tile[i][j])

    return op


def scaled_row(stored):
    """(source, columns, scale, target): the first columns at source times the one number at scale, zeros beyond."""

    @tile_op
    def op(frame):
        source, columns, scale, target = frame.integers
        frame.store(frame.load(source, frame.below(columns), stored) * frame.broadcast(scale), target)

    return op


def write_row(stored):
    """(target, columns, factor): the tile times the vector at factor to the first columns at target."""

    @tile_op
    def op(frame):
        target, columns, factor = frame.integers
        frame.store(frame.tile[0][0] * frame.load(factor), target, frame.below(columns), stored)

    return op


@tile_op
def add_scaled(frame):
    """(p, stride, factors): add the rows at p, each times its vector at factors; stride in bytes."""
    p, stride, factors = frame.integers
    vector = frame.width * frame.lanes.size
    for i in range(frame.m):
        factor = frame.load(factors + i * vector)
        for j in range(frame.n):
            frame.tile[i][j] = fma(frame.load(p + stride * i + j * vector), factor, frame.tile[i][j])


@tile_op
def weight(frame):
    """(record,): what its sums count for, given the highest score of all."""
    (record,) = frame.integers
    frame.tile[0][0] = exp(frame.load(record) - reference(frame.tile[0][0]))


@tile_op
def one_over_sum(frame):
    """The reciprocal of the sum of the lanes, in every lane."""
    frame.tile[0][0] = reciprocal(_butterfly(frame.tile[0][0], lambda a, b: a + b))
