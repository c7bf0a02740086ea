"""Attention of a few queries over many keys, unmasked: dimensions lie in the lanes, and K and V are read once.

The keys are cut into chunks of CHUNK, whatever the threads; each gives, for every row (query of a head that shares the
keys), a partial record: its highest score, the sums of its exponentials and of the values. `combine` adds the records
up in the order of the chunks. Within a chunk, BLOCK keys are in the first cache while all rows pass over them; one row
passes over them once, and takes the chunk as a whole: longer runs of memory, fewer sums that start anew.

Operations: 2 S (D + Dv) a row. Bytes from outside the caches: K and V once, which is what the time goes to.
"""

from . import target
from .inner import inner
from .parts import never_inline
from .records import combiner, record
from .rowwise import (
    across,
    add_scaled,
    advance,
    empty,
    exponential,
    multiply,
    multiply_part,
    outer_part,
    raised,
    scaled_row,
    store_sums,
)
from .tiles import add, load, store, zeros

ARGUMENTS = (
    *("q", "q_batch", "q_head", "q_row"),  # (B, N, T, D): address, strides in elements; the last stride is 1 in all
    *("k", "k_batch", "k_head", "k_row"),  # (B, N / group, S, D)
    *("v", "v_batch", "v_head", "v_row"),  # (B, N / group, S, Dv)
    *("out", "N", "group", "T", "S", "D", "Dv"),  # (B, N, T, Dv) contiguous
    "records",  # B N T chunks(S) records, `of_chunk(size, rows, Dv)` elements for each chunk
    "work",  # `workspace(size, rows, D)` elements, the first of which holds the scale; rows: group T
    *("first", "last", "step"),  # which chunks to compute, of chunks(S) for each batch and key head
    *("first_row", "last_row"),  # then, which rows of the output to combine
)
CHUNK, BLOCK = 1024, 64  # keys
ROWS, WIDE = 4, 4  # rows, and vectors of a key or a value, at a time


def chunks(S):
    return -(-S // CHUNK)


def workspace(size, rows, D):
    """Elements of scratch memory that one caller needs: a vector with the scale; a row's query, alpha and scores."""
    W = target.current().lanes(size)
    return W + rows * (W * -(-D // W) + W + block(rows))


def of_chunk(size, rows, Dv):
    """Elements of the records of a chunk of one key head."""
    return rows * record(target.current().lanes(size), Dv)


def block(rows):
    """Keys that so many rows take at a time."""
    return CHUNK if rows == 1 else BLOCK


def build(size, stored):
    """stored: bytes of an element of q, k, v and out, `size` or 2, bfloat16."""
    W = target.current().lanes(size)
    load_rows, attend, combine = _load_rows(size, stored), _attend(size, stored), combiner(size, stored)
    block_of, record_of = inner(block), inner(record)

    @inner
    def compute(q, k, v, out, N, group, T, S, D, Dv, records, work, first, last, step, first_row, last_row):
        """q, k, v: (address, batch, head and row strides)."""
        never_inline()
        count, rows, heads = -(-S // CHUNK), group * T, N // group
        together = block_of(rows)
        each = size * record_of(W, Dv)
        for item in range(first, last, step):
            head, chunk = item // count, item % count
            b, h = head // heads, head % heads
            load_rows((q[0] + stored * (q[1] * b + q[2] * h * group), q[2], q[3]), group, T, D, work)
            keys = (k[0] + stored * (k[1] * b + k[2] * h), k[3], D)
            values = (v[0] + stored * (v[1] * b + v[2] * h), v[3], Dv)
            own = records + each * rows * item
            end = min(CHUNK * (chunk + 1), S)
            for start in range(CHUNK * chunk, end, together):
                attend(keys, values, start, min(start + together, end), rows, work, own, each, start == CHUNK * chunk)
        for row in range(first_row, last_row):
            first_record = records + each * (row // rows * count * rows + row % rows)
            combine(first_record, count, each * rows, Dv, out + stored * Dv * row)

    @inner
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, out, N, group, T, S, D, Dv,
        records, work, first, last, step, first_row, last_row,
    ):  # fmt: skip
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        compute(q, k, v, out, N, group, T, S, D, Dv, records, work, first, last, step, first_row, last_row)

    return run


def _load_rows(size, stored):
    """The queries of all rows, scaled, each padded with zeros to whole vectors."""
    W, scaled = target.current().lanes(size), scaled_row(stored)

    @inner
    def load_rows(q, group, T, D, work):
        p, head, row = q
        padded = -(-D // W) * W
        for r in range(group * T):
            for d in range(0, D, W):
                source = p + stored * (head * (r // T) + row * (r % T) + d)
                scaled(zeros(1, 1, size), (source, D - d, work, work + size * (W + padded * r + d)))

    return load_rows


def _attend(size, stored):
    """A function that takes the keys from `start` to `end` - 1 into the records of all rows."""
    W = target.current().lanes(size)
    vector = W * size
    scores, several, single = _scores(size, stored), _accumulate(ROWS, size, stored), _accumulate(1, size, stored)

    @inner
    def attend(keys, values, start, end, rows, work, records, each, new):
        k, k_row, D = keys
        v, v_row, Dv = values
        count, padded = end - start, -(-D // W) * W
        queries = work + vector
        alphas = queries + size * padded * rows
        p = alphas + vector * rows
        k, v = k + stored * k_row * start, v + stored * v_row * start
        for r in range(rows):
            record, row = records + each * r, p + size * BLOCK * r
            if new:
                empty(zeros(1, 1, size), (record,))
            scores(k, k_row, count, D, queries + size * padded * r, row)
            highest = load(zeros(1, 1, size), record, 0)
            for i in range(0, count, W):
                highest = raised(highest, (row + size * i,))
            advance(across(highest, ()), (record, alphas + vector * r))
            for i in range(0, count, W):
                exponential(zeros(1, 1, size), (row + size * i, record))
        r, sums = 0, records + 2 * vector
        while r + ROWS <= rows:
            weights = (p + size * BLOCK * r, alphas + vector * r)
            several(v, v_row, count, Dv, weights, sums + each * r, each, new)
            r += ROWS
        while r < rows:
            weights = (p + size * BLOCK * r, alphas + vector * r)
            single(v, v_row, count, Dv, weights, sums + each * r, each, new)
            r += 1

    return attend


def _scores(size, stored):
    """p[key] of `count` keys with one query; -inf up to a whole vector."""
    W = target.current().lanes(size)
    several, two, single = (multiply(n, stored) for n in (WIDE, 2, 1))
    part = multiply_part(stored)

    @inner
    def scores(k, k_row, count, D, q, p):
        for i in range(0, count, W):
            acc, at, inside = zeros(W, 1, size), k + stored * k_row * i, 0
            if count - i >= W:
                wide, inside = D // (WIDE * W) * (WIDE * W), D // W * W
                even = D // (2 * W) * (2 * W)
                for d in range(0, wide, WIDE * W):
                    acc = several(acc, (at + stored * d, k_row, q + size * d))
                for d in range(wide, even, 2 * W):
                    acc = two(acc, (at + stored * d, k_row, q + size * d))
                for d in range(even, inside, W):
                    acc = single(acc, (at + stored * d, k_row, q + size * d))
            for d in range(inside, D, W):
                acc = part(acc, (at + stored * d, k_row, q + size * d, count - i, D - d))
            store_sums(acc, (p + size * i, count - i))

    return scores


def _accumulate(m, size, stored):
    """sums = alpha sums + p V over `count` keys and m rows; when they are new there are no sums to read."""
    wide, two, narrow = (_value_columns(m, n, size, stored) for n in (WIDE, 2, 1))
    W = target.current().lanes(size)

    @inner
    def accumulate(v, v_row, count, Dv, weights, sums, each, new):
        d = 0
        while d + WIDE * W <= Dv:
            wide(v + stored * d, v_row, count, Dv - d, weights, sums + size * d, each, new)
            d += WIDE * W
        if d + 2 * W <= Dv:
            two(v + stored * d, v_row, count, Dv - d, weights, sums + size * d, each, new)
            d += 2 * W
        while d < Dv:
            narrow(v + stored * d, v_row, count, Dv - d, weights, sums + size * d, each, new)
            d += W

    return accumulate


def _value_columns(m, n, size, stored):
    add_row = outer_part(stored)

    @inner
    def term(acc, v, v_row, i, left, p):
        return add_row(acc, (p + size * i, BLOCK, v + stored * v_row * i, left))

    @inner
    def columns(v, v_row, count, left, weights, sums, each, new):
        p, alphas = weights
        acc = zeros(m, n, size)
        if m == 1:  # a second chain, since one would wait for its own results
            other = zeros(m, n, size)
            for i in range(1, count, 2):
                acc = term(acc, v, v_row, i - 1, left, p)
                other = term(other, v, v_row, i, left, p)
            if count % 2:
                acc = term(acc, v, v_row, count - 1, left, p)
            acc = add(acc, other)
        else:
            for i in range(count):
                acc = term(acc, v, v_row, i, left, p)
        if not new:
            acc = add_scaled(acc, (sums, each, alphas))
        store(acc, sums, each // size)

    return columns
