"""Exact attention forward with an online softmax, transposed: queries lie in the lanes, keys and dimensions are broadcast.

A block of queries (n vectors of W) meets the keys BLOCK at a time: scores S^T[key][query], then exponentials in place, then
O^T[dimension][query]. The softmax's maximum, sum and rescaling stay within lanes, K and V are read where they lie, and the
scores of one block are all that there ever is of the T x S matrix. Every query block is computed on its own, so its bits do
not depend on who computes it.

Operations: 2 T S (D + Dv), half of it for a causal square. Bytes from outside the caches: K and V once a query block.
"""

from llvmlite import ir
from numba import njit

from . import target
from .parts import flush_denormals, load_part, never_inline, restore_denormals, store_part
from .softmax import LOG2E, exp2, reciprocal, reference
from .tiles import add, load, outer, store, tile_op, transpose, zeros
from .vector import I8, I32, Mask, call, fma, maximum, select

ARGUMENTS = (
    *("q", "q_batch", "q_head", "q_row"),  # (B, N, T, D): address, strides in elements; the last stride is 1, here and below
    *("k", "k_batch", "k_head", "k_row"),  # (B, N / group, S, D)
    *("v", "v_batch", "v_head", "v_row"),  # (B, N / group, S, Dv)
    *("mask", "mask_batch", "mask_head", "mask_row"),  # (B, N, T, S), any stride but the last may be 0
    "mask_kind",  # NO_MASK; BOOLS: bytes, 0 hides a key; FLOATS: added to the scores
    *("out", "N", "group", "T", "S", "D", "Dv", "causal"),  # (B, N, T, Dv) contiguous
    "work",  # `workspace(size, D, Dv)` elements, the first of which holds the scale times log2 e
    *("first", "last", "step"),  # which query blocks to compute, of `items(size, T)` a head
)
NO_MASK, BOOLS, FLOATS = 0, 1, 2
BLOCK = 96  # keys


def vectors():
    """Vectors of queries in a block: the tile of scores fills the registers."""
    return 4 if target.current().registers >= 32 else 3


def items(size, T):
    """Query blocks of a head: as many wide ones as fit, then blocks of one vector."""
    count, n = -(-T // target.current().lanes(size)), vectors()
    return count // n + count % n


def workspace(size, D, Dv):
    """Elements of scratch memory that one caller needs."""
    W = target.current().lanes(size)
    return vectors() * W * (6 + 2 * BLOCK + _whole(D, W) + _whole(Dv, W))


def _whole(count, W):
    return -(-count // W) * W


def build(size):
    W, n = target.current().lanes(size), vectors()
    wide, narrow = _query_block(n, size), _query_block(1, size)

    @njit(nogil=True)
    def compute(q, k, v, mask, mask_kind, out, N, group, T, S, D, Dv, causal, work, first, last, step):
        """Items first, first + step, ... of all heads; q, k, v, mask: (address, batch, head and row strides)."""
        never_inline()
        mask_size = 1 if mask_kind == BOOLS else size
        count = -(-T // W)
        blocks = count // n
        each = blocks + count % n
        for item in range(first, last, step):
            head, block = item // each, item % each
            t = (min(block, blocks) * n + max(0, block - blocks)) * W
            b, h = head // N, head % N
            queries = (q[0] + size * (q[1] * b + q[2] * h + q[3] * t), q[3], T - t, D)
            keys = (k[0] + size * (k[1] * b + k[2] * (h // group)), k[3], S, D)
            values = (v[0] + size * (v[1] * b + v[2] * (h // group)), v[3], Dv)
            hidden = (mask[0] + mask_size * (mask[1] * b + mask[2] * h + mask[3] * t), mask[3], mask_kind, causal)
            target_rows = out + size * Dv * (T * head + t)
            if block < blocks:
                wide(queries, keys, values, hidden, target_rows, t, work)
            else:
                narrow(queries, keys, values, hidden, target_rows, t, work)

    @njit(nogil=True)
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, mask, mask_batch, mask_head,
        mask_row, mask_kind, out, N, group, T, S, D, Dv, causal, work, first, last, step,
    ):  # fmt: skip
        mode = flush_denormals()
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        mask = (mask, mask_batch, mask_head, mask_row)
        compute(q, k, v, mask, mask_kind, out, N, group, T, S, D, Dv, causal, work, first, last, step)
        restore_denormals(mode)

    return run


def _query_block(n, size):
    """A function that computes the output rows of up to n W queries of one head, the first at position t."""
    W = target.current().lanes(size)
    width = n * W
    row = width * size
    pack_queries, pack_mask, finish = _pack_queries(n, size), _pack_mask(n, size), _finish(n, size)
    scores, exponentials, accumulate = _scores(n, size), _exponentials(n, size), _accumulate(n, size)

    @njit(nogil=True)
    def attend(queries, keys, values, hidden, out, t, work):
        k, k_row, S, D = keys
        v, v_row, Dv = values
        mask, mask_row, mask_kind, causal = hidden
        state = (work + row, work + 2 * row, work + 3 * row, work + 4 * row, work + 5 * row)
        p = work + 6 * row
        added = p + BLOCK * row
        qt = added + BLOCK * row
        ot = qt + -(-D // W) * W * row
        pack_queries(queries, work, qt)
        reset(zeros(1, n, size), state)
        end = min(S, t + width) if causal else S
        for start in range(0, end, BLOCK):
            count = min(BLOCK, end - start)
            if mask_kind != NO_MASK:
                pack_mask(mask, mask_row, mask_kind, queries[2], start, count, added)
            diagonal = start - t if causal else -2 * BLOCK
            extra = added if mask_kind != NO_MASK else 0
            scores(k + size * k_row * start, k_row, count, D, qt, extra, diagonal, p, state[0])
            advance(zeros(1, n, size), state)
            exponentials(p, count, state)
            accumulate(v + size * v_row * start, v_row, count, Dv, p, ot, state[4], start == 0)
        finish(ot, state[3], queries[2], Dv, out)

    return attend


@tile_op
def reset(frame):
    """(highest, before, reference, total, alpha) of a new query block."""
    highest, before, _, total, _ = frame.integers
    for j in range(frame.n):
        offset = j * frame.width * frame.lanes.size
        frame.store(frame.constant("-inf"), highest + offset)
        frame.store(frame.constant("-inf"), before + offset)
        frame.store(frame.constant(0.0), total + offset)


@tile_op
def advance(frame):
    """After a block's scores: the reference to subtract from them, and what scales all that came before."""
    highest, before, subtracted, total, alpha = frame.integers
    for j in range(frame.n):
        offset = j * frame.width * frame.lanes.size
        new = frame.load(highest + offset)
        base = reference(new)
        factor = exp2(frame.load(before + offset) - base)
        frame.store(new, before + offset)
        frame.store(base, subtracted + offset)
        frame.store(factor, alpha + offset)
        frame.store(frame.load(total + offset) * factor, total + offset)


def _scores(n, size):
    """Scores of `count` keys: p[key][query], and the highest of each query raised to theirs."""
    m = target.current().rows(n)
    tile, single = _score_tile(m, n, size), _score_tile(1, n, size)
    row = n * target.current().lanes(size) * size

    @njit(nogil=True)
    def scores(k, k_row, count, D, qt, added, diagonal, p, highest):
        for i in range(0, count - m + 1, m):
            extra = added + row * i if added else 0
            tile(k + size * k_row * i, k_row, D, qt, extra, diagonal + i, p + row * i, highest)
        for i in range(count // m * m, count):
            extra = added + row * i if added else 0
            single(k + size * k_row * i, k_row, D, qt, extra, diagonal + i, p + row * i, highest)

    return scores


def _score_tile(m, n, size):
    width = n * target.current().lanes(size)

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

    @njit(nogil=True)
    def tile(k, k_row, D, qt, added, diagonal, p, highest):
        acc = zeros(m, n, size)
        for d in range(D):
            acc = outer(acc, k + size * d, k_row, qt + size * width * d)
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


def _exponentials(n, size):
    """p = 2^(p - reference) in place; the sums are added to the total."""
    row = n * target.current().lanes(size) * size
    together = 2 if n > 1 else 4

    def op(rows):
        def exponential(frame):
            """The tile holds the sums."""
            p, subtracted = frame.integers
            vector = frame.width * frame.lanes.size
            for i in range(rows):
                for j in range(n):
                    place = p + (i * n + j) * vector
                    value = exp2(frame.load(place) - frame.load(subtracted + j * vector))
                    frame.store(value, place)
                    frame.tile[0][j] = frame.tile[0][j] + value

        return tile_op(exponential)

    several, single = op(together), op(1)

    @njit(nogil=True)
    def exponentials(p, count, state):
        sums = zeros(1, n, size)
        for i in range(0, count - together + 1, together):
            sums = several(sums, (p + row * i, state[2]))
        for i in range(count // together * together, count):
            sums = single(sums, (p + row * i, state[2]))
        store(add(sums, load(zeros(1, n, size), state[3], 0)), state[3], 0)

    return exponentials


def _accumulate(n, size):
    """O^T = alpha O^T + V^T P over `count` keys; the sum over a block is made apart, which keeps its rounding small."""
    most = target.current().rows(n) // 4 * 4
    tile, single = _value_tile(most, n, size), _value_tile(1, n, size)
    row = n * target.current().lanes(size) * size

    @njit(nogil=True)
    def accumulate(v, v_row, count, Dv, p, ot, alpha, new):
        for d in range(0, Dv - most + 1, most):
            tile(v + size * d, v_row, count, p, ot + row * d, alpha, new)
        for d in range(Dv // most * most, Dv):
            single(v + size * d, v_row, count, p, ot + row * d, alpha, new)

    return accumulate


def _value_tile(m, n, size):
    width = n * target.current().lanes(size)

    @tile_op
    def rescale(frame):
        ot, alpha = frame.integers
        vector = frame.width * size
        for j in range(n):
            factor = frame.load(alpha + j * vector)
            for i in range(m):
                frame.tile[i][j] = fma(frame.load(ot + (i * n + j) * vector), factor, frame.tile[i][j])

    @njit(nogil=True)
    def tile(v, v_row, count, p, ot, alpha, new):
        acc = zeros(m, n, size)
        for i in range(count):
            acc = outer(acc, v + size * v_row * i, 1, p + size * width * i)
        if not new:
            acc = rescale(acc, (ot, alpha))
        store(acc, ot, width)

    return tile


def _pack_queries(n, size):
    """Q^T[dimension][query] times the scale; zeros beyond the last query."""
    W = target.current().lanes(size)

    @tile_op
    def scaled(frame):
        factor = frame.broadcast(frame.integers[0])
        for rows in frame.tile:
            rows[0] = rows[0] * factor

    @njit(nogil=True)
    def pack(queries, scale, qt):
        q, q_row, count, D = queries
        for j in range(n):
            for d in range(0, D, W):
                rows = load_part(zeros(W, 1, size), (q + size * (q_row * j * W + d), q_row, count - j * W, D - d))
                store(scaled(transpose(rows, ()), (scale,)), qt + size * W * (n * d + j), n * W)

    return pack


def _pack_mask(n, size):
    """What the mask adds to the scores of a block: added[key][query]."""
    W = target.current().lanes(size)

    @njit(nogil=True)
    def pack(mask, mask_row, kind, queries, start, count, added):
        for j in range(n):
            rows = queries - j * W
            for i in range(0, count, W):
                place = mask_row * j * W + start + i
                target_rows = added + size * W * (n * i + j)
                if kind == FLOATS:
                    tile = load_part(zeros(W, 1, size), (mask + size * place, mask_row, rows, count - i))
                    store(in_log2(transpose(tile, ()), ()), target_rows, n * W)
                else:
                    tile = load_bools(zeros(W, 1, size), (mask + place, mask_row, rows, count - i))
                    store(transpose(tile, ()), target_rows, n * W)

    return pack


@tile_op
def in_log2(frame):
    for rows in frame.tile:
        rows[0] = rows[0] * LOG2E


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


def _finish(n, size):
    """Divide O^T by the total and write its transpose."""
    W = target.current().lanes(size)

    @tile_op
    def divide(frame):
        (total,) = frame.integers
        factor = reciprocal(frame.load(total))
        for rows in frame.tile:
            rows[0] = rows[0] * factor

    @njit(nogil=True)
    def finish(ot, total, count, Dv, out):
        for j in range(n):
            for d in range(0, Dv, W):
                columns = load(zeros(W, 1, size), ot + size * W * (n * d + j), n * W)
                rows = transpose(divide(columns, (total + size * W * j,)), ())
                store_part(rows, (out + size * (Dv * j * W + d), Dv, count - j * W, Dv - d))

    return finish
