"""The steps of attention's backward with the queries in the lanes: a group of n vectors of them meets a block of keys.

Weights p[key][query] and the gradients of the scores ds[key][query], rows of n vectors, are made for whole tiles of
keys: a row past the last key holds anything and is left out of sums over keys; its own sums are written to scratch
memory, which has room for it.

Of bfloat16 (stored = 2) both are rounded to be operands: rows of bfloat16, with pairs of queries for the sums over
queries, and of ds pairs of keys as well, [pair of keys][query][2], for the sum over keys.
"""

from . import narrow, target
from .groups import vectors
from .inner import inner
from .layout import terms
from .operands import load_terms, outer_term, per_lane
from .parts import load_part
from .softmax import exp
from .sums import dots, products
from .tiles import add, load, store, tile_op, transpose, zeros
from .transposed import dot_queries
from .vector import fma, select


def rows():
    """Rows of every tile here, so that a block's tiles are the same keys in all products."""
    return target.current().rows(vectors())


def pack_normalizers(n, size):
    """For each query what to take from its scores: lse, or 0 where that is -inf, since no key is seen."""

    @tile_op
    def finite(frame):
        for j, x in enumerate(frame.tile[0]):
            frame.tile[0][j] = select(x <= float("-inf"), x.of(0.0), x)

    @inner
    def pack(lse, count, normalizers):
        store(finite(load_part(zeros(1, n, size), (lse, 0, 1, count)), ()), normalizers, 0)

    return pack


def pack_deltas(n, size, stored):
    """For each query the sum over dimensions of out times dO^T[dimension][query], which may be scaled."""
    W, per, load_rows = target.current().lanes(size), per_lane(size, stored), load_terms(size, stored)
    multiply = fma if per == 1 else narrow.dot

    @tile_op
    def add_products(frame):
        dot, delta = frame.integers
        total = frame.constant(0.0)
        for i in range(frame.m):
            total = multiply(frame.tile[i][0], frame.load(dot + i * n * W * size), total)
        frame.store(frame.load(delta) + total, delta)

    @inner
    def pack(out, count, Dv, dot, deltas):
        store(zeros(1, n, size), deltas, 0)
        for j in range(n):
            for d in range(0, Dv, W * per):
                part = load_rows(zeros(W, 1, size), (out + stored * (Dv * j * W + d), Dv, count - j * W, Dv - d))
                add_products(transpose(part, ()), (dot + size * W * (n * (d // per) + j), deltas + size * W * j))

    return pack


def weights(n, size, stored):
    """Weights of `count` keys, in whole tiles: p = e^(scores - normalizer), 0 where a key is hidden; not rounded yet.

    The scores are those of the forward, of float32 and float64 to the bit: lse has seen their rounding.
    """
    m = rows()
    width, score = n * target.current().lanes(size), dot_queries(m, n, size, stored)
    plain, causal = _weights_op(m, n, size, False), _weights_op(m, n, size, True)

    @inner
    def run(k, k_row, count, D, qt, scale, added, diagonal, normalizers, p):
        for i in range(0, count, m):
            place = p + size * width * i
            acc = score(k + size * k_row * i, k_row, D, qt, scale, place)
            if added:
                acc = add(acc, load(zeros(m, n, size), added + size * width * i, width))
            if diagonal + i + m > 1:
                causal(acc, (place, normalizers, diagonal + i))
            else:
                plain(acc, (place, normalizers, 0))

    return run


def _weights_op(m, n, size, causal):
    @tile_op
    def op(frame):
        """Key i of the tile is hidden, if causal, from the queries before it: lanes below diagonal + i."""
        p, normalizers, diagonal = frame.integers
        vector = frame.width * size
        for j in range(n):
            normalizer = frame.load(normalizers + j * vector)
            for i in range(m):
                value = frame.tile[i][j] - normalizer
                if causal:
                    hidden = frame.below(diagonal + (i - j * frame.width))
                    value = select(~hidden, value, float("-inf"))
                frame.store(exp(value), p + (i * n + j) * vector)

    return op


def score_gradients(n, size, stored, dropout):
    """ds = p (v dO^T - delta) of `count` keys, in whole tiles; with dropout v dO^T, and then p, are times `kept`.

    Of bfloat16 ds is also times the scale, and p is left as it was: (p_rows, ds_rows) get both, ds the pairs of keys.
    """
    m, per, length = rows(), per_lane(size, stored), inner(terms)
    width, product = n * target.current().lanes(size), dots(m, n, size, stored)
    keep = _keep_rows if per == 1 else _keep_pairs

    @tile_op
    def op(frame):
        p, ds, deltas, kept, *others = frame.integers
        vector = frame.width * size
        for j in range(n):
            delta, found = frame.load(deltas + j * vector), []
            for i in range(m):
                place = (i * n + j) * vector
                weight, value = frame.load(p + place), frame.tile[i][j]
                dropped = weight
                if dropout:
                    factor = frame.load(kept + place)
                    dropped, value = weight * factor, value * factor
                found.append((dropped, weight * (value - delta)))
            keep(frame, j, found, p if dropout else None, ds, others)

    @tile_op
    def drop_second(frame):
        frame.tile[0] = [narrow.first_of(x) for x in frame.tile[0]]

    @inner
    def run(v, v_row, count, Dv, dot, scale, deltas, kept, p, ds, rounded):
        for i in range(0, count, m):
            place = size * width * i
            acc = product(v + size * v_row * i, per * v_row, dot, length(Dv, size, stored), ds + place)
            others = scale, rounded[0] + place // per, rounded[1] + place // per
            op(acc, (p + place, ds + place // per, deltas, kept + place, *others))
        if count % per:
            last = ds + size * width * (count // per)
            store(drop_second(load(zeros(1, n, size), last, 0), ()), last, 0)

    return run


def _keep_rows(frame, j, found, p, ds, others):
    """Write vector j of each key's row: ds, and p if it has an address."""
    for i, (weight, gradient) in enumerate(found):
        place = (i * frame.n + j) * frame.width * frame.lanes.size
        if p is not None:
            frame.store(weight, p + place)
        frame.store(gradient, ds + place)


def _keep_pairs(frame, j, found, p, ds, others):
    scale, *rounded = others
    factor, half = frame.broadcast(scale), frame.width * narrow.BFLOAT16
    for i in range(0, frame.m, 2):
        (p_low, low), (p_high, high) = found[i : i + 2]
        low, high = low * factor, high * factor
        place = (i * frame.n + j) * half
        for (x, y), result in zip(((p_low, p_high), (low, high)), rounded):
            narrow.store_two(x, y, (result + place).value, (result + place + frame.n * half).value)
        frame.store(narrow.pair(low, high), ds + (i * frame.n // 2 + j) * 2 * half)


def add_over_keys(n, size, stored):
    """sums^T[dimension][query] += K^T ds over `count` keys, for D dimensions, in whole tiles.

    k: the terms of `operands.rows_as_terms`, k_row lanes apart.
    """
    m, per, length = rows(), per_lane(size, stored), inner(terms)
    width, product = n * target.current().lanes(size), products(m, n, size, stored)

    @inner
    def run(k, k_row, count, D, ds, sums):
        for d in range(0, D, m):
            place = sums + size * width * d
            acc = product(k + size * d, k_row, per, ds, width, length(count, size, stored))
            store(add(acc, load(acc, place, width)), place, width)

    return run


def add_over_queries(n, size, stored):
    """sums[key][dimension] += p rows[query][dimension] over the queries up to `last`, for `count` keys in whole tiles.

    first: from which query on key 0 is seen, an even number; queries: the terms of `operands.rows_as_terms`; rows of
    the vectors that hold D dimensions, `row` lanes apart in both.
    """
    m, W = rows(), target.current().lanes(size)
    widths = (vectors(), 2, 1)
    wide, pair, single = (_columns(m, columns, n * W, size, stored) for columns in widths)

    @inner
    def run(p, count, first, last, queries, row, D, sums):
        for i in range(0, count, m):
            weights, place, start, d = p + stored * n * W * i, sums + size * row * i, max(0, first + i), 0
            while d + (widths[0] - 1) * W < D:
                wide(weights, start, last, queries + size * d, row, place + size * d)
                d += widths[0] * W
            if d + W < D:
                pair(weights, start, last, queries + size * d, row, place + size * d)
                d += 2 * W
            if d < D:
                single(weights, start, last, queries + size * d, row, place + size * d)

    return run


def _columns(m, columns, width, size, stored):
    product, per = products(m, columns, size, stored), per_lane(size, stored)
    add_last = outer_term(size, stored, single=True)

    @inner
    def run(weights, start, last, queries, row, sums):
        rows = queries + size * row * (start // per)
        acc = product(weights + stored * start, 1, width, rows, row, (last - start) // per)
        if last % per:
            acc = add_last(acc, weights + stored * (last - 1), width, queries + size * row * (last // per))
        store(add(acc, load(acc, sums, row)), sums, row)

    return run
