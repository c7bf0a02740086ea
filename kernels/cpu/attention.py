"""Exact attention forward with an online softmax, transposed: queries in the lanes, keys and dimensions broadcast.

A block of queries (n vectors of W) meets the keys BLOCK at a time: scores S^T[key][query], then exponentials in place,
then O^T[dimension][query]. The softmax's maximum, sum and rescaling stay within lanes, K and V are read where they lie,
and the scores of one block are all that there ever is of the T x S matrix. Every query block is computed on its own, so
its bits do not depend on who computes it.

Operations: 2 T S (D + Dv), half of it for a causal square. Bytes from outside the caches: K and V once a query block.
"""

from . import target
from .inner import inner
from .parts import flush_denormals, never_inline, restore_denormals
from .product import accumulate
from .softmax import advance, exponentials, reset
from .tiles import add, load, outer, store, tile_op, zeros
from .transposed import BOOLS, NO_MASK, finish, pack_mask, pack_queries
from .vector import fma, maximum, select

ARGUMENTS = (
    *(
        "q",
        "q_batch",
        "q_head",
        "q_row",
    ),  # (B, N, T, D): address, strides in elements; the last stride is 1 in all
    *("k", "k_batch", "k_head", "k_row"),  # (B, N / group, S, D)
    *("v", "v_batch", "v_head", "v_row"),  # (B, N / group, S, Dv)
    *("mask", "mask_batch", "mask_head", "mask_row"),  # (B, N, T, S), any stride but the last may be 0
    "mask_kind",  # NO_MASK; BOOLS: bytes, 0 hides a key; FLOATS: added to the scores
    *("out", "N", "group", "T", "S", "D", "Dv", "causal"),  # (B, N, T, Dv) contiguous
    "work",  # `workspace(size, D, Dv)` elements, the first of which holds the scale
    *("first", "last", "step"),  # which query blocks to compute, of `items(size, T)` a head
)
BLOCK = 96  # keys
SUMMED = 64  # dimensions that are added up one after the other; the rounding of longer sums would show


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

    @inner
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

    @inner
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
    load_queries, load_mask, write = pack_queries(n, size), pack_mask(n, size), finish(n, size)
    scores, exponentiate, add_values = _scores(n, size), exponentials(n, size), _add_values(n, size)

    @inner
    def attend(queries, keys, values, hidden, out, t, work):
        k, k_row, S, D = keys
        v, v_row, Dv = values
        mask, mask_row, mask_kind, causal = hidden
        state = (work + row, work + 2 * row, work + 3 * row, work + 4 * row, work + 5 * row)
        p = work + 6 * row
        added = p + BLOCK * row
        qt = added + BLOCK * row
        ot = qt + -(-D // W) * W * row
        load_queries(queries, work, qt)
        reset(zeros(1, n, size), state)
        end = min(S, t + width) if causal else S
        for start in range(0, end, BLOCK):
            count = min(BLOCK, end - start)
            if mask_kind != NO_MASK:
                load_mask(mask, mask_row, mask_kind, queries[2], start, count, added)
            diagonal = start - t if causal else -2 * BLOCK
            extra = added if mask_kind != NO_MASK else 0
            scores(k + size * k_row * start, k_row, count, D, qt, extra, diagonal, p, state[0])
            advance(zeros(1, n, size), state)
            exponentiate(p, count, state)
            add_values(v + size * v_row * start, v_row, count, Dv, p, ot, state[4], start == 0)
        write(ot, state[3], queries[2], Dv, out)

    return attend


def _scores(n, size):
    """Scores of `count` keys: p[key][query], and the highest of each query raised to theirs."""
    m = target.current().rows(n)
    tile, single = _score_tile(m, n, size), _score_tile(1, n, size)
    row = n * target.current().lanes(size) * size

    @inner
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

    @inner
    def tile(k, k_row, D, qt, added, diagonal, p, highest):
        acc = accumulate(zeros(m, n, size), k, k_row, min(D, SUMMED), qt)
        for d in range(SUMMED, D, SUMMED):
            store(acc, p, width)
            acc = accumulate(zeros(m, n, size), k + size * d, k_row, min(D - d, SUMMED), qt + size * width * d)
            acc = add(acc, load(acc, p, width))
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


def _add_values(n, size):
    """O^T = alpha O^T + V^T P over `count` keys; the sum over a block is made apart, which keeps its rounding small."""
    most = target.current().rows(n)
    tile, pair, single = (_value_tile(m, n, size) for m in (most, 2, 1))
    row = n * target.current().lanes(size) * size

    @inner
    def add_values(v, v_row, count, Dv, p, ot, alpha, new):
        d = 0
        while d + most <= Dv:
            tile(v + size * d, v_row, count, p, ot + row * d, alpha, new)
            d += most
        while d + 2 <= Dv:
            pair(v + size * d, v_row, count, p, ot + row * d, alpha, new)
            d += 2
        if d < Dv:
            single(v + size * d, v_row, count, p, ot + row * d, alpha, new)

    return add_values


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

    @inner
    def tile(v, v_row, count, p, ot, alpha, new):
        acc = zeros(m, n, size)
        for i in range(count):
            acc = outer(acc, v + size * v_row * i, 1, p + size * width * i)
        if not new:
            acc = rescale(acc, (ot, alpha))
        store(acc, ot, width)

    return tile
