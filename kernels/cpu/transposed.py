"""The steps of attention with the queries in the lanes: a group of n vectors of them meets a block of keys.

p[key][query], Q^T[dimension][query], O^T[dimension][query]: rows of n vectors each; of bfloat16 (stored = 2) p and Q^T
hold a pair of keys, of dimensions, in a lane, O^T and the sums are float32.
"""

from llvmlite import ir

from . import target
from .inner import inner
from .layout import terms
from .operands import load_terms, per_lane
from .parts import part_loader, part_storer
from .softmax import reciprocal
from .sums import dots, products
from .tiles import add, load, store, tile_op, transpose, zeros
from .vector import I8, I32, Mask, call, fma, maximum, select

NO_MASK, BOOLS, FLOATS = 0, 1, 2


def pack_queries(n, size, stored):
    """Q^T[dimension][query] times the scale, but for bfloat16, which it would round; zeros beyond the last query."""
    W, per, load_rows = target.current().lanes(size), per_lane(size, stored), load_terms(size, stored)

    @tile_op
    def scaled(frame):
        factor = frame.broadcast(frame.integers[0])
        for rows in frame.tile:
            rows[0] = rows[0] * factor

    @inner
    def pack(queries, scale, qt):
        q, q_row, count, D = queries
        for j in range(n):
            for d in range(0, D, W * per):
                part = q + stored * (q_row * j * W + d), q_row, count - j * W, D - d
                columns = transpose(load_rows(zeros(W, 1, size), part), ())
                if per == 1:
                    columns = scaled(columns, (scale,))
                store(columns, qt + size * W * (n * (d // per) + j), n * W)

    return pack


def pack_mask(n, size, stored):
    """What the mask adds to the scores of a block: added[key][query]."""
    W, load_floats = target.current().lanes(size), part_loader(stored)

    @inner
    def pack(mask, mask_row, kind, queries, start, count, added):
        for j in range(n):
            rows = queries - j * W
            for i in range(0, count, W):
                place = mask_row * j * W + start + i
                target_rows = added + size * W * (n * i + j)
                if kind == FLOATS:
                    tile = load_floats(zeros(W, 1, size), (mask + stored * place, mask_row, rows, count - i))
                else:
                    tile = load_bools(zeros(W, 1, size), (mask + place, mask_row, rows, count - i))
                store(transpose(tile, ()), target_rows, n * W)

    return pack


@tile_op
def load_bools(frame):
    """(p, stride, rows, columns): bytes, read as 0 where true and -inf where false; 0 outside rows and columns."""
    p, stride, rows, columns = frame.integers
    kind = ir.VectorType(I8, frame.width)
    for i in range(frame.m):
        inside = frame.below(columns) & frame.below((rows - i) * frame.width)
        pointer = frame.builder.inttoptr((p + stride * i).value, kind.as_pointer())
        ones = ir.Constant(kind, [1] * frame.width)
        name = f"llvm.masked.load.v{frame.width}i8.p0"
        value = call(frame.builder, name, kind, pointer, I32(1), inside.value, ones)
        hidden = Mask(frame.builder, frame.builder.icmp_signed("==", value, ir.Constant(kind, [0] * frame.width)))
        frame.tile[i][0] = select(hidden, frame.constant("-inf"), 0.0)


def finish(n, size, stored, divided=True):
    """Write the transpose of O^T[dimension][query] to rows of Dv elements; divided by the total, if it is to be."""
    W, store_rows = target.current().lanes(size), part_storer(stored)

    @tile_op
    def divide(frame):
        (total,) = frame.integers
        factor = reciprocal(frame.load(total))
        for rows in frame.tile:
            rows[0] = rows[0] * factor

    @inner
    def write(ot, total, count, Dv, out):
        for j in range(n):
            for d in range(0, Dv, W):
                columns = load(zeros(W, 1, size), ot + size * W * (n * d + j), n * W)
                if divided:
                    columns = divide(columns, (total + size * W * j,))
                rows = transpose(columns, ())
                store_rows(rows, (out + stored * (Dv * j * W + d), Dv, count - j * W, Dv - d))

    return write


def scores(n, size, stored):
    """Scores of `count` keys: p[key][query], and the highest of each query raised to theirs. k_row: lanes."""
    m = target.current().rows(n)
    tile, pair, single = (_score_tile(rows, n, size, stored) for rows in (m, 2, 1))
    row = n * target.current().lanes(size) * size

    @inner
    def run(k, k_row, count, D, qt, scale, added, diagonal, p, highest):
        i = 0
        while i < count:
            extra = added + row * i if added else 0
            keys, place = k + size * k_row * i, p + row * i
            if i + m <= count:
                tile(keys, k_row, D, qt, scale, extra, diagonal + i, place, highest)
                i += m
            elif i + 2 <= count:
                pair(keys, k_row, D, qt, scale, extra, diagonal + i, place, highest)
                i += 2
            else:
                single(keys, k_row, D, qt, scale, extra, diagonal + i, place, highest)
                i += 1

    return run


def dot_queries(m, n, size, stored):
    """The scores of m keys before a mask: their products with Q^T, of bfloat16 times the scale. p: as in `dots`."""
    per, count = per_lane(size, stored), inner(terms)
    products = dots(m, n, size, stored, in_order=True)

    @tile_op
    def scaled(frame):
        factor = frame.broadcast(frame.integers[0])
        frame.tile[:] = [[x * factor for x in row] for row in frame.tile]

    @inner
    def run(k, k_row, D, qt, scale, p):
        acc = products(k, per * k_row, qt, count(D, size, stored), p)
        return acc if per == 1 else scaled(acc, (scale,))

    return run


def _score_tile(m, n, size, stored):
    width, products = n * target.current().lanes(size), dot_queries(m, n, size, stored)

    @tile_op
    def plain(frame):
        p, highest = frame.integers
        _store_scores(frame, p, highest)

    @tile_op
    def causal(frame):
        """Key i of the tile is hidden from the queries before it: lanes below diagonal + i."""
        p, highest, diagonal = frame.integers
        for i in range(m):
            for j in range(n):
                hide = frame.below(diagonal + (i - j * frame.width))
                frame.tile[i][j] = select(~hide, frame.tile[i][j], float("-inf"))
        _store_scores(frame, p, highest)

    @inner
    def tile(k, k_row, D, qt, scale, added, diagonal, p, highest):
        acc = products(k, k_row, D, qt, scale, p)
        if added:
            acc = add(acc, load(zeros(m, n, size), added, width))
        if diagonal + m > 1:
            causal(acc, (p, highest, diagonal))
        else:
            plain(acc, (p, highest))

    return tile


def _store_scores(frame, p, highest):
    vector = frame.width * frame.lanes.size
    for j in range(frame.n):
        most = frame.load(highest + j * vector)
        for i in range(frame.m):
            frame.store(frame.tile[i][j], p + (i * frame.n + j) * vector)
            most = maximum(frame.tile[i][j], most)
        frame.store(most, highest + j * vector)


def add_values(n, size, stored):
    """O^T = alpha O^T + V^T P over `count` keys; the sum over a block is made apart, which keeps its rounding small.

    v: the terms of `operands.rows_as_terms`, v_row lanes apart.
    """
    most = target.current().rows(n)
    tile, pair, single = (_value_tile(m, n, size, stored) for m in (most, 2, 1))
    row = n * target.current().lanes(size) * size

    @inner
    def run(v, v_row, count, Dv, p, ot, alpha, new):
        d = 0
        while d + most <= Dv:
            tile(v + size * d, v_row, count, p, ot + row * d, alpha, new)
            d += most
        while d + 2 <= Dv:
            pair(v + size * d, v_row, count, p, ot + row * d, alpha, new)
            d += 2
        if d < Dv:
            single(v + size * d, v_row, count, p, ot + row * d, alpha, new)

    return run


def _value_tile(m, n, size, stored):
    width, sums = n * target.current().lanes(size), products(m, n, size, stored)
    per, length = per_lane(size, stored), inner(terms)

    @tile_op
    def rescale(frame):
        ot, alpha = frame.integers
        vector = frame.width * size
        for j in range(n):
            factor = frame.load(alpha + j * vector)
            for i in range(m):
                frame.tile[i][j] = fma(frame.load(ot + (i * n + j) * vector), factor, frame.tile[i][j])

    @inner
    def tile(v, v_row, count, p, ot, alpha, new):
        acc = sums(v, v_row, per, p, width, length(count, size, stored))
        if not new:
            acc = rescale(acc, (ot, alpha))
        store(acc, ot, width)

    return tile
