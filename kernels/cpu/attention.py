"""Exact attention forward with an online softmax, transposed: queries in the lanes, keys and dimensions broadcast.

A group of queries (n vectors of W) meets the keys BLOCK at a time: scores S^T[key][query], then exponentials in place,
then O^T[dimension][query]. The softmax's maximum, sum and rescaling stay within lanes, and the scores of one block are
all that there ever is of the T x S matrix. Several groups pass over a block of K and V while it is in the second cache,
in a copy whose rows do not compete for the same places of the first; one group reads K and V where they lie. A group is
computed on its own: its bits do not depend on who computes it, nor on which groups go together.

Operations: 2 T S (D + Dv), half of it for a causal square. Bytes from outside the caches: K and V once every `groups`.
With dropout, a call of the generator for every eight weights, and a multiplier for each, written once and read once.
"""

from . import target
from .groups import BLOCK, GROUPS, every_group, row, vectors, whole
from .inner import inner
from .parts import flush_denormals, never_inline, restore_denormals, store_part
from .philox import multipliers
from .softmax import advance, exponentials, log_sums, reset
from .tiles import zeros
from .transposed import BOOLS, NO_MASK, add_values, copy_rows, finish, pack_mask, pack_queries, scores

ARGUMENTS = (
    # (B, N, T, D): address, strides in elements; the last stride is 1, here and below
    *("q", "q_batch", "q_head", "q_row"),
    *("k", "k_batch", "k_head", "k_row"),  # (B, N / group, S, D)
    *("v", "v_batch", "v_head", "v_row"),  # (B, N / group, S, Dv)
    *("mask", "mask_batch", "mask_head", "mask_row"),  # (B, N, T, S), any stride but the last may be 0
    "mask_kind",  # NO_MASK; BOOLS: bytes, 0 hides a key; FLOATS: added to the scores
    *("out", "N", "group", "T", "S", "D", "Dv", "causal"),  # (B, N, T, Dv) contiguous
    "lse",  # (B, N, T) contiguous, the logarithms of the sums of exponentials; 0: they are not wanted
    *("seed", "threshold"),  # of dropout (kernels/dropout.py)
    "work",  # `workspace(size, D, Dv)` elements: the first holds the scale, the second what dropout rescales by
    "groups",  # of queries that go together, up to GROUPS
    *("first", "last", "step"),  # which items to compute, of `items(size, T, groups)` for each head
)


def items(size, T, groups):
    """Items of a head: `groups` of queries each; where the last ones do not fill a group, groups of one vector."""
    return -(-T // (target.current().lanes(size) * vectors() * groups))


def workspace(size, D, Dv):
    """Elements of scratch memory that one caller needs."""
    W, n = target.current().lanes(size), vectors()
    return W + BLOCK * (3 * n * W + row(D, W) + row(Dv, W)) + GROUPS * n * W * (5 + whole(D, W) + whole(Dv, W))


def build(size, dropout):
    W, n = target.current().lanes(size), vectors()
    vector = W * size
    begin, end = every_group(_begin, size), every_group(_end, size)
    meet = every_group(lambda n, size: _meet(n, size, dropout), size)
    copy, row_of, whole_of = copy_rows(size), inner(row), inner(whole)

    @inner
    def item(queries, keys, values, hidden, dropped, out, t, count, work):
        """`count` vectors of queries of one head from position t."""
        (k, k_row, S, D), (v, v_row, Dv) = keys, values
        k_copy = work + vector * (1 + 3 * n * BLOCK)
        v_copy = k_copy + size * BLOCK * row_of(D, W)
        states = v_copy + size * BLOCK * row_of(Dv, W)
        each = vector * (5 + whole_of(D, W) + whole_of(Dv, W))
        begin(states, each, t, count, (queries, work, D))
        last = min(S, t + count * W) if hidden[3] else S
        for start in range(0, last, BLOCK):
            block_k, block_v = (k + size * k_row * start, k_row), (v + size * v_row * start, v_row)
            if count > n:
                copy(k + size * k_row * start, k_row, min(BLOCK, last - start), D, k_copy, row_of(D, W))
                copy(v + size * v_row * start, v_row, min(BLOCK, last - start), Dv, v_copy, row_of(Dv, W))
                block_k, block_v = (k_copy, row_of(D, W)), (v_copy, row_of(Dv, W))
            arguments = (block_k, block_v, start, S, D, Dv, hidden, dropped, queries[2], work + vector)
            meet(states, each, t, count, arguments)
        end(states, each, t, count, (queries[2], D, Dv, *out))

    @inner
    def compute(q, k, v, mask, sizes, results, generator, work, groups, first, last, step):
        """Items first, first + step, ... of all heads; q, k, v, mask: (address, batch, head and row strides)."""
        never_inline()
        mask_kind, N, group, T, S, D, Dv, causal = sizes
        mask_size = 1 if mask_kind == BOOLS else size
        count, together = -(-T // W), groups * n
        items_a_head = -(-count // together)
        for i in range(first, last, step):
            head, at = i // items_a_head, i % items_a_head * together
            b, h = head // N, head % N
            queries = (q[0] + size * (q[1] * b + q[2] * h), q[3], T)
            keys = (k[0] + size * (k[1] * b + k[2] * (h // group)), k[3], S, D)
            values = (v[0] + size * (v[1] * b + v[2] * (h // group)), v[3], Dv)
            hidden = (mask[0] + mask_size * (mask[1] * b + mask[2] * h), mask[3], mask_kind, causal)
            dropped = (*generator, work + size, head)
            out = (results[0] + size * Dv * T * head, results[1] + size * T * head if results[1] else 0)
            item(queries, keys, values, hidden, dropped, out, at * W, min(together, count - at), work)

    @inner
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, mask, mask_batch, mask_head,
        mask_row, mask_kind, out, N, group, T, S, D, Dv, causal, lse, seed, threshold, work, groups, first, last, step,
    ):  # fmt: skip
        mode = flush_denormals()
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        mask, sizes = (mask, mask_batch, mask_head, mask_row), (mask_kind, N, group, T, S, D, Dv, causal)
        compute(q, k, v, mask, sizes, (out, lse), (seed, threshold), work, groups, first, last, step)
        restore_denormals(mode)

    return run


def _parts(n, size):
    """The parts of a group's state: (highest, before, reference, total, alpha), Q^T and O^T."""
    W = target.current().lanes(size)
    row = n * W * size
    whole_of = inner(whole)

    @inner
    def parts(state, D):
        qt = state + 5 * row
        return (state, state + row, state + 2 * row, state + 3 * row, state + 4 * row), qt, qt + whole_of(D, W) * row

    return parts


def _begin(n, size):
    pack, parts = pack_queries(n, size), _parts(n, size)

    @inner
    def begin(state, t, arguments):
        (q, q_row, T), scale, D = arguments
        softmax, qt, _ = parts(state, D)
        pack((q + size * q_row * t, q_row, T - t, D), scale, qt)
        reset(zeros(1, n, size), softmax)

    return begin


def _meet(n, size, dropout):
    """A block of keys and the group from position t."""
    width = n * target.current().lanes(size)
    add_mask, parts, draw = pack_mask(n, size), _parts(n, size), multipliers(n, size)
    score, exponentiate, add_up = scores(n, size), exponentials(n, size, dropout), add_values(n, size)

    @inner
    def meet(state, t, arguments):
        (k, k_row), (v, v_row), start, S, D, Dv, (mask, mask_row, mask_kind, causal), dropped, T, p = arguments
        count = min(BLOCK, (min(S, t + width) if causal else S) - start)
        if count <= 0:
            return
        softmax, qt, ot = parts(state, D)
        added, kept = 0, p + 2 * size * width * BLOCK
        if mask_kind != NO_MASK:
            added = p + size * width * BLOCK
            at = mask + (1 if mask_kind == BOOLS else size) * mask_row * t
            add_mask(at, mask_row, mask_kind, T - t, start, count, added)
        score(k, k_row, count, D, qt, added, start - t if causal else -2 * BLOCK, p, softmax[0])
        advance(zeros(1, n, size), softmax)
        if dropout:
            draw(dropped, t, start, count, kept)
        exponentiate(p, count, softmax, kept)
        add_up(v, v_row, count, Dv, p, ot, softmax[4], start == 0)

    return meet


def _end(n, size):
    write, parts = finish(n, size), _parts(n, size)

    @inner
    def end(state, t, arguments):
        T, D, Dv, out, lse = arguments
        softmax, _, ot = parts(state, D)
        write(ot, softmax[3], T - t, Dv, out + size * Dv * t)
        if lse:
            store_part(log_sums(zeros(1, n, size), (softmax[2], softmax[3])), (lse + size * t, 0, 1, T - t))

    return end
