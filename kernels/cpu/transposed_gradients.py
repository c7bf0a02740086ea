"""The steps of attention's backward with the queries in the lanes: a group of n vectors of them meets a block of keys.

Weights p[key][query] and the gradients of the scores ds[key][query], rows of n vectors, are made for whole tiles of
keys: a row past the last key holds anything and is left out of sums over keys; its own sums are written to scratch
memory, which has room for it.
"""

from . import target
from .groups import BLOCK, vectors
from .inner import inner
from .operands import copy_rows
from .parts import load_part, store_part
from .softmax import exp
from .sums import dots, products
from .tiles import add, load, store, tile_op, transpose, zeros
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


def pack_deltas(n, size):
    """For each query the sum over dimensions of out times dO^T[dimension][query], which may be scaled."""
    W = target.current().lanes(size)

    @tile_op
    def add_products(frame):
        dot, delta = frame.integers
        total = frame.constant(0.0)
        for i in range(frame.m):
            total = fma(frame.tile[i][0], frame.load(dot + i * n * W * size), total)
        frame.store(frame.load(delta) + total, delta)

    @inner
    def pack(out, count, Dv, dot, deltas):
        store(zeros(1, n, size), deltas, 0)
        for j in range(n):
            for d in range(0, Dv, W):
                part = load_part(zeros(W, 1, size), (out + size * (Dv * j * W + d), Dv, count - j * W, Dv - d))
                add_products(transpose(part, ()), (dot + size * W * (n * d + j), deltas + size * W * j))

    return pack


def weights(n, size):
    """Weights of `count` keys, in whole tiles: p = e^(scores - normalizer), 0 where a key is hidden.

    The scores are to the bit those of the forward, whose rounding lse has seen.
    """
    m = rows()
    width, score = n * target.current().lanes(size), dots(m, n, size, size, in_order=True)
    plain, causal = _weights_op(m, n, size, False), _weights_op(m, n, size, True)

    @inner
    def run(k, k_row, count, D, qt, added, diagonal, normalizers, p):
        for i in range(0, count, m):
            place = p + size * width * i
            acc = score(k + size * k_row * i, k_row, qt, D, place)
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


def score_gradients(n, size, dropout):
    """ds = p (v dO^T - delta) of `count` keys, in whole tiles; with dropout v dO^T, and then p, are times `kept`."""
    m = rows()
    width, product = n * target.current().lanes(size), dots(m, n, size, size)

    @tile_op
    def op(frame):
        p, ds, deltas, kept = frame.integers
        vector = frame.width * size
        for j in range(n):
            delta = frame.load(deltas + j * vector)
            for i in range(m):
                place = (i * n + j) * vector
                weight, value = frame.load(p + place), frame.tile[i][j]
                if dropout:
                    factor = frame.load(kept + place)
                    value = value * factor
                    frame.store(weight * factor, p + place)
                frame.store(weight * (value - delta), ds + place)

    @inner
    def run(v, v_row, count, Dv, dot, deltas, kept, p, ds):
        for i in range(0, count, m):
            place = size * width * i
            acc = product(v + size * v_row * i, v_row, dot, Dv, ds + place)
            op(acc, (p + place, ds + place, deltas, kept + place))

    return run


def add_over_keys(n, size):
    """sums^T[dimension][query] += K^T ds over `count` keys, for D dimensions, in whole tiles."""
    m = rows()
    width, product = n * target.current().lanes(size), products(m, n, size, size)

    @inner
    def run(k, k_row, count, D, ds, sums):
        for d in range(0, D, m):
            place = sums + size * width * d
            acc = product(k + size * d, k_row, 1, ds, width, count)
            store(add(acc, load(acc, place, width)), place, width)

    return run


def add_over_queries(n, size):
    """sums[key][dimension] += p rows[query][dimension] over the queries up to `last`, for `count` keys in whole tiles.

    first: from which query on key 0 is seen; rows of the vectors that hold D dimensions, `row` elements apart in both.
    """
    m, W = rows(), target.current().lanes(size)
    widths = (vectors(), 2, 1)
    wide, pair, single = (_columns(m, columns, n * W, size) for columns in widths)

    @inner
    def run(p, count, first, last, queries, row, D, sums):
        for i in range(0, count, m):
            weights, place, start, d = p + size * n * W * i, sums + size * row * i, max(0, first + i), 0
            while d + (widths[0] - 1) * W < D:
                wide(weights, start, last, queries + size * d, row, place + size * d)
                d += widths[0] * W
            if d + W < D:
                pair(weights, start, last, queries + size * d, row, place + size * d)
                d += 2 * W
            if d < D:
                single(weights, start, last, queries + size * d, row, place + size * d)

    return run


def _columns(m, columns, width, size):
    product = products(m, columns, size, size)

    @inner
    def run(weights, start, last, queries, row, sums):
        acc = product(weights + size * start, 1, width, queries + size * row * start, row, last - start)
        store(add(acc, load(acc, sums, row)), sums, row)

    return run


def fetch_rows(size):
    """A block of keys, or of values, and what has been added to their gradients, which is nothing if they are new.

    copies: where both go, the elements between their rows, those of a row that hold anything.
    """
    copy, W = copy_rows(size, size), target.current().lanes(size)

    @inner
    def fetch(src, src_row, gradient, count, new, copies):
        own, sums, row, D = copies
        copy(src, src_row, count, D, own, row)
        if new:
            for i in range(0, BLOCK * row, W):
                store(zeros(1, 1, size), sums + size * i, 0)
        else:
            copy(gradient, D, count, D, sums, row)

    return fetch


def write_rows(size):
    """Rows of whole vectors, `src_row` elements apart, to `count` rows of D elements that follow each other."""
    W = target.current().lanes(size)

    @inner
    def write(src, src_row, count, D, dst):
        for i in range(count):
            for d in range(0, D, W):
                vector = load(zeros(1, 1, size), src + size * (src_row * i + d), 0)
                store_part(vector, (dst + size * (D * i + d), 0, 1, D - d))

    return write
