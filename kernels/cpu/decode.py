"""Attention of a few queries over many keys, unmasked: dimensions lie in the lanes, and K and V are read once.

The keys are cut into chunks of CHUNK, whatever the threads; each gives, for every row (query of a head that shares the
keys), a partial record: its highest score, the sums of its exponentials and of the values. `combine` adds the records
up in the order of the chunks. Within a chunk, BLOCK keys are in the first cache while all rows pass over them.

Operations: 2 S (D + Dv) a row. Bytes from outside the caches: K and V once, which is what the time goes to.
"""

from llvmlite import ir

from . import target
from .inner import inner
from .parts import flush_denormals, load_part, never_inline, restore_denormals, store_part
from .softmax import reciprocal, reference
from .tiles import load, outer, store, tile_op, transpose, zeros
from .vecmath import exp
from .vector import I32, fma, maximum, select

ARGUMENTS = (
    *("q", "q_batch", "q_head", "q_row"),  # (B, N, T, D): address, strides in elements; the last stride is 1 in all
    *("k", "k_batch", "k_head", "k_row"),  # (B, N / group, S, D)
    *("v", "v_batch", "v_head", "v_row"),  # (B, N / group, S, Dv)
    *("out", "N", "group", "T", "S", "D", "Dv"),  # (B, N, T, Dv) contiguous
    "records",  # B N T chunks(S) records of `record(size, Dv)` elements
    "work",  # `workspace(size, rows, D)` elements, the first of which holds the scale; rows: group T
    *("first", "last", "step"),  # which chunks to compute, of chunks(S) for each batch and key head
    *("first_row", "last_row"),  # then, which rows of the output to combine
)
CHUNK, BLOCK = 1024, 64  # keys
_VECTORS = 4  # of values at a time


def chunks(S):
    return -(-S // CHUNK)


def record(size, Dv):
    """Elements of a record: the highest score in every lane, the lanes' sums of exponentials, the sums of values."""
    W = target.current().lanes(size)
    return 2 * W + -(-Dv // W) * W


def workspace(size, rows, D):
    """Elements of scratch memory that one caller needs: vectors for two scales, the rows' queries, a row of scores."""
    W = target.current().lanes(size)
    return 2 * W + rows * -(-D // W) * W + BLOCK


def build(size):
    W = target.current().lanes(size)
    load_rows, attend, combine = _load_rows(size), _attend(size), _combine(size)

    @inner
    def compute(q, k, v, out, N, group, T, S, D, Dv, records, work, first, last, step, first_row, last_row):
        """q, k, v: (address, batch, head and row strides)."""
        never_inline()
        count, rows, heads = -(-S // CHUNK), group * T, N // group
        each = size * (2 * W + -(-Dv // W) * W)
        for item in range(first, last, step):
            head, chunk = item // count, item % count
            b, h = head // heads, head % heads
            load_rows((q[0] + size * (q[1] * b + q[2] * h * group), q[2], q[3]), group, T, D, work)
            keys = (k[0] + size * (k[1] * b + k[2] * h), k[3], D)
            values = (v[0] + size * (v[1] * b + v[2] * h), v[3], Dv)
            own = records + each * rows * item
            for start in range(CHUNK * chunk, min(CHUNK * (chunk + 1), S), BLOCK):
                attend(keys, values, start, min(BLOCK, S - start), rows, work, own, each, start == CHUNK * chunk)
        for row in range(first_row, last_row):
            first_record = records + each * (row // rows * count * rows + row % rows)
            combine(first_record, count, each * rows, Dv, out + size * Dv * row)

    @inner
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, out, N, group, T, S, D, Dv,
        records, work, first, last, step, first_row, last_row,
    ):  # fmt: skip
        mode = flush_denormals()
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        compute(q, k, v, out, N, group, T, S, D, Dv, records, work, first, last, step, first_row, last_row)
        restore_denormals(mode)

    return run


def _load_rows(size):
    """The queries of all rows, scaled, each padded with zeros to whole vectors."""
    W = target.current().lanes(size)

    @inner
    def load_rows(q, group, T, D, work):
        p, head, row = q
        padded = -(-D // W) * W
        for r in range(group * T):
            for d in range(0, D, W):
                part = load_part(zeros(1, 1, size), (p + size * (head * (r // T) + row * (r % T) + d), 0, 1, D - d))
                store(times(part, (work,)), work + size * (2 * W + padded * r + d), 0)

    return load_rows


@tile_op
def times(frame):
    """(p,): times the one number at p."""
    (p,) = frame.integers
    frame.tile[0][0] = frame.tile[0][0] * frame.broadcast(p)


def _attend(size):
    """A function that takes `count` keys into the records of all rows."""
    W = target.current().lanes(size)
    scores, accumulate = _scores(size), _accumulate(size)

    @inner
    def attend(keys, values, start, count, rows, work, records, each, new):
        k, k_row, D = keys
        v, v_row, Dv = values
        padded = -(-D // W) * W
        alpha = work + size * W
        p = work + size * (2 * W + padded * rows)
        for r in range(rows):
            record = records + each * r
            if new:
                empty(zeros(1, 2, size), (record,))
            scores(k + size * k_row * start, k_row, count, D, work + size * (2 * W + padded * r), p)
            highest = load(zeros(1, 1, size), record, 0)
            for i in range(0, count, W):
                highest = raised(highest, (p + size * i,))
            advance(across(highest, ()), (record, alpha))
            for i in range(0, count, W):
                exponential(zeros(1, 1, size), (p + size * i, record))
            accumulate(v + size * v_row * start, v_row, count, Dv, p, record + size * 2 * W, alpha, new)

    return attend


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


def _scores(size):
    """p[key] of `count` keys with one query; -inf up to a whole vector."""
    W = target.current().lanes(size)

    @inner
    def scores(k, k_row, count, D, q, p):
        for i in range(0, count, W):
            acc, at, inside = zeros(W, 1, size), k + size * k_row * i, 0
            if count - i >= W:
                inside = D // W * W
                for d in range(0, inside, W):
                    acc = multiply(acc, (at + size * d, k_row, q + size * d))
            for d in range(inside, D, W):
                acc = multiply_part(acc, (at + size * d, k_row, q + size * d, count - i, D - d))
            store_sums(transpose(acc, ()), (p + size * i, count - i))

    return scores


@tile_op
def multiply(frame):
    """(k, stride, q): add a vector of q times a vector of every row of k."""
    k, stride, q = frame.integers
    query = frame.load(q)
    for i in range(frame.m):
        frame.tile[i][0] = fma(frame.load(k + stride * (i * frame.lanes.size)), query, frame.tile[i][0])


@tile_op
def multiply_part(frame):
    """`multiply` with (..., rows, columns) of k: nothing outside them is read."""
    k, stride, q, rows, columns = frame.integers
    query = frame.load(q)
    for i in range(frame.m):
        inside = frame.below(columns) & frame.below((rows - i) * frame.width)
        frame.tile[i][0] = fma(frame.load(k + stride * (i * frame.lanes.size), inside), query, frame.tile[i][0])


@tile_op
def store_sums(frame):
    """(p, count): the sum of all rows; -inf in the lanes from count on."""
    p, count = frame.integers
    rows = [row[0] for row in frame.tile]
    while len(rows) > 1:
        rows = [a + b for a, b in zip(rows[::2], rows[1::2])]
    frame.store(select(frame.below(count), rows[0], float("-inf")), p)


def _accumulate(size):
    """sums = alpha sums + p V over `count` keys; alpha 0 the first time, when there are no sums to read."""
    W = target.current().lanes(size)
    wide = _VECTORS * W

    @inner
    def accumulate(v, v_row, count, Dv, p, sums, alpha, new):
        for d in range(0, Dv - wide + 1, wide):
            acc = zeros(1, _VECTORS, size)
            for i in range(count):
                acc = outer(acc, p + size * i, 0, v + size * (v_row * i + d))
            if not new:
                acc = add_scaled(acc, (sums + size * d, alpha))
            store(acc, sums + size * d, 0)
        for d in range(Dv // wide * wide, Dv, W):
            acc = zeros(1, 1, size)
            for i in range(count):
                acc = outer_part(acc, (p + size * i, v + size * (v_row * i + d), Dv - d))
            if not new:
                acc = add_scaled(acc, (sums + size * d, alpha))
            store(acc, sums + size * d, 0)

    return accumulate


@tile_op
def outer_part(frame):
    """(a, b, columns): add the number at a times the first columns at b."""
    a, b, columns = frame.integers
    row = frame.load(b, frame.below(columns))
    frame.tile[0][0] = fma(frame.broadcast(a), row, frame.tile[0][0])


@tile_op
def add_scaled(frame):
    """(p, factor): add what lies at p times the vector at factor."""
    p, factor = frame.integers
    for j in range(frame.n):
        vector = frame.load(p + j * frame.width * frame.lanes.size)
        frame.tile[0][j] = fma(vector, frame.load(factor), frame.tile[0][j])


def _combine(size):
    """One row of the output from its `count` records, `stride` bytes apart."""
    W = target.current().lanes(size)
    vector = W * size

    @inner
    def combine(first, count, stride, Dv, out):
        highest = load(zeros(1, 1, size), first, 0)
        for c in range(1, count):
            highest = raised(highest, (first + stride * c,))
        total = zeros(1, 1, size)
        for c in range(count):
            store(weight(highest, (first + stride * c,)), first + stride * c, 0)
            total = add_scaled(total, (first + stride * c + vector, first + stride * c))
        inverse = one_over_sum(total, ())
        store(inverse, first + vector, 0)
        for d in range(0, Dv, W):
            acc = zeros(1, 1, size)
            for c in range(count):
                acc = add_scaled(acc, (first + stride * c + 2 * vector + size * d, first + stride * c))
            store_part(times(acc, (first + vector,)), (out + size * d, 0, 1, Dv - d))

    return combine


@tile_op
def weight(frame):
    """(record,): what its sums count for, given the highest score of all."""
    (record,) = frame.integers
    frame.tile[0][0] = exp(frame.load(record) - reference(frame.tile[0][0]))


@tile_op
def one_over_sum(frame):
    """The reciprocal of the sum of the lanes, in every lane."""
    frame.tile[0][0] = reciprocal(_butterfly(frame.tile[0][0], lambda a, b: a + b))
