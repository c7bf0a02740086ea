"""Gradients of exact attention, from lse and the output: the weights are made again (Dao, "FlashAttention-2", 2023).

With P = e^(scores - lse), transposed as in attention.py, and delta = sum(out dO) a query: dV = P^T dO,
dS = P (dO V^T - delta), dQ = dS K and dK = dS^T Q. dO^T and delta carry the scale, and with it dS. With dropout dO V^T,
and the P of dV, are times what P was multiplied by.

An item is a chunk of the keys of one head of K and V and owns their dK and dV, which it adds up over all heads of the
group and over all queries, in order. Several groups of queries, whose Q^T, dO^T, Q, dO and dQ^T stay in the second
cache, go over the chunk together: a block of keys and of its dK and dV is fetched once for all of them. Chunks have
sums of dQ of their own, which the caller adds up. How many there are depends on the sizes alone.

Operations: 5 products, 2 T S (3 D + 2 Dv), half of it for a causal square. Bytes from outside the second cache, for a
block of keys: K, V, dK and dV once every `together(size, D, Dv)` groups; for a group of queries: Q, dO and out read and
dQ written once a chunk. Packing them costs as much as some ten keys, so that a chunk has hundreds.
"""

from . import target
from .attention import BOOLS, NO_MASK
from .groups import BLOCK, GROUPS, every_group, row, vectors, whole
from .inner import inner
from .operands import copy_rows
from .parts import flush_denormals, never_inline, restore_denormals
from .philox import multipliers
from .tiles import store, zeros
from .transposed import finish, pack_mask, pack_queries
from .transposed_gradients import (
    add_over_keys,
    add_over_queries,
    fetch_rows,
    pack_deltas,
    pack_normalizers,
    rows,
    score_gradients,
    weights,
    write_rows,
)

ARGUMENTS = (
    # (B, N, T, D): address, strides in elements; the last stride is 1, here and below
    *("q", "q_batch", "q_head", "q_row"),
    *("k", "k_batch", "k_head", "k_row"),  # (B, N / group, S, D)
    *("v", "v_batch", "v_head", "v_row"),  # (B, N / group, S, Dv)
    *("mask", "mask_batch", "mask_head", "mask_row", "mask_kind"),  # as in attention.py
    *("dout", "dout_batch", "dout_head", "dout_row"),  # (B, N, T, Dv)
    *("out", "lse"),  # (B, N, T, Dv), (B, N, T), contiguous
    *("dq", "dk", "dv"),  # as q, k and v, contiguous; dq of the first chunk
    "partial",  # dq of the other chunks, one after the other
    *("N", "group", "T", "S", "D", "Dv", "causal"),
    *("seed", "threshold"),  # of dropout (kernels/dropout.py)
    "chunk",  # keys of a chunk, a multiple of BLOCK, of those that any query sees
    *("groups", "each"),  # `together(size, D, Dv)`, `each(size, D, Dv)`
    "work",  # `workspace(size, D, Dv)` elements: the first holds the scale, the second what dropout rescales by
    *("task", "tasks", "items"),  # which items to compute, of all heads' chunks: every `tasks`-th, back and forth
)
_STATES = 1 << 18  # bytes of the groups' states: with a block of keys they fill half of a second cache of 1 MiB


def each(size, D, Dv):
    """Elements of a group's state for each of its queries."""
    W, m = target.current().lanes(size), rows()
    return 2 + whole(D, W) + whole(Dv, W) + whole(D + m, W) + row(D + m, W) + row(Dv, W)


def together(size, D, Dv):
    """Groups of queries that go over the keys together."""
    W = target.current().lanes(size)
    return max(1, min(GROUPS, _STATES // (size * W * vectors() * each(size, D, Dv))))


def workspace(size, D, Dv):
    """Elements of scratch memory that one caller needs."""
    W, n, m = target.current().lanes(size), vectors(), rows()
    blocks = BLOCK * (4 * n * W + 2 * row(D + m, W) + 2 * row(Dv, W))
    return W + blocks + together(size, D, Dv) * n * W * each(size, D, Dv)


def build(size, dropout):
    W, m = target.current().lanes(size), rows()
    one_head, row_of = _one_head(size, dropout), inner(row)

    @inner
    def compute(q, k, v, mask, dout, saved, results, sizes, generator, chunk, layout, work, task, tasks, items):
        """Tensors as (address, batch, head and row strides)."""
        never_inline()
        mask_kind, N, group, T, S, D, Dv, causal = sizes
        (out, lse), (dq, dk, dv, partial) = saved, results
        seen, mask_size = min(S, T) if causal else S, 1 if mask_kind == BOOLS else size
        chunks, turn, i = -(-seen // chunk), 0, task
        while i < items:
            head, c = i // chunks, i % chunks
            b, h = head // (N // group), head % (N // group)
            keys = (k[0] + size * (k[1] * b + k[2] * h), k[3], dk + size * D * S * head, D, row_of(D + m, W))
            values = (v[0] + size * (v[1] * b + v[2] * h), v[3], dv + size * Dv * S * head, Dv, row_of(Dv, W))
            dq_chunk = partial + size * D * T * (items // chunks * group) * (c - 1) if c else dq
            for j in range(h * group, (h + 1) * group):
                place = b * N + j
                queries = (q[0] + size * (q[1] * b + q[2] * j), q[3], out + size * Dv * T * place, T)
                gradients = (dout[0] + size * (dout[1] * b + dout[2] * j), dout[3], lse + size * T * place)
                hidden = (mask[0] + mask_size * (mask[1] * b + mask[2] * j), mask[3], mask_kind, causal)
                dropped = (*generator, work + size, place)
                of_keys = (chunk * c, min(chunk * (c + 1), seen), j == h * group)
                of_queries = (queries, gradients, dq_chunk + size * D * T * place)
                one_head(of_queries, (keys, values), of_keys, hidden, dropped, layout, work)
            turn += 1
            i = tasks * turn + (tasks - 1 - task if turn % 2 else task)

    @inner
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, mask, mask_batch, mask_head,
        mask_row, mask_kind, dout, dout_batch, dout_head, dout_row, out, lse, dq, dk, dv, partial, N, group, T, S, D,
        Dv, causal, seed, threshold, chunk, groups, each, work, task, tasks, items,
    ):  # fmt: skip
        mode = flush_denormals()
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        mask, dout = (mask, mask_batch, mask_head, mask_row), (dout, dout_batch, dout_head, dout_row)
        saved, results, sizes = (out, lse), (dq, dk, dv, partial), (mask_kind, N, group, T, S, D, Dv, causal)
        shared = (chunk, (groups, each), work, task, tasks, items)
        compute(q, k, v, mask, dout, saved, results, sizes, (seed, threshold), *shared)
        restore_denormals(mode)

    return run


def _one_head(size, dropout):
    """What the queries of a head add to dK and dV of a chunk of keys, and their dQ of it."""
    W, n = target.current().lanes(size), vectors()
    begin, end = every_group(_begin, size), every_group(_end, size)
    meet = every_group(_meet, size, dropout)
    fetch, write = fetch_rows(size), write_rows(size)

    @inner
    def run(queries, tensors, chunk, hidden, dropped, layout, work):
        (k, k_row, dk, D, row), (v, v_row, dv, Dv, v_width) = tensors
        (start, last, first_head), T, causal = chunk, queries[0][3], hidden[3]
        k_copy = work + size * W * (1 + 4 * n * BLOCK)
        dk_copy, v_copy = k_copy + size * BLOCK * row, k_copy + 2 * size * BLOCK * row
        dv_copy, states = v_copy + size * BLOCK * v_width, v_copy + 2 * size * BLOCK * v_width
        copies = (k_copy, dk_copy, row, D), (v_copy, dv_copy, v_width, Dv)
        groups, each = layout[0], size * W * layout[1]
        width = groups * n * W
        for t in range(start // width * width if causal else 0, T, width):
            count = min(groups * n, -(-(T - t) // W))
            begin(states, each, t, count, (queries, copies, work))
            for s in range(start, min(last, t + width) if causal else last, BLOCK):
                keys, new = min(BLOCK, last - s), first_head and t <= (s if causal else 0)
                fetch(k + size * k_row * s, k_row, dk + size * D * s, keys, new, copies[0])
                fetch(v + size * v_row * s, v_row, dv + size * Dv * s, keys, new, copies[1])
                meet(states, each, t, count, (copies, s, keys, T, hidden, dropped, work + size * W))
                write(dk_copy, row, keys, D, dk + size * D * s)
                write(dv_copy, v_width, keys, Dv, dv + size * Dv * s)
            end(states, each, t, count, (queries[2], T, copies))

    return run


def _parts(n, size):
    """The parts of a group's state: normalizers, deltas, Q^T, dO^T, dQ^T, Q and dO."""
    W, m = target.current().lanes(size), rows()
    vectors = n * W * size
    whole_of = inner(whole)

    @inner
    def parts(state, copies):
        (_, _, row, D), (_, _, _, Dv) = copies
        qt = state + 2 * vectors
        dot = qt + whole_of(D, W) * vectors
        sums = dot + whole_of(Dv, W) * vectors
        q_rows = sums + whole_of(D + m, W) * vectors
        return state, state + vectors, qt, dot, sums, q_rows, q_rows + row * vectors

    return parts


def _begin(n, size):
    W, m = target.current().lanes(size), rows()
    parts, pack, copy, whole_of = _parts(n, size), pack_queries(n, size, size), copy_rows(size, size), inner(whole)
    normalize, add_deltas = pack_normalizers(n, size), pack_deltas(n, size)

    @inner
    def begin(state, t, arguments):
        ((q, q_row, out, T), (dout, dout_row, lse), _), copies, scale = arguments
        (_, _, row, D), (_, _, v_width, Dv) = copies
        normalizers, deltas, qt, dot, sums, q_rows, dout_rows = parts(state, copies)
        q, dout, count = q + size * q_row * t, dout + size * dout_row * t, min(n * W, T - t)
        pack((q, q_row, count, D), scale, qt)
        pack((dout, dout_row, count, Dv), scale, dot)
        copy(q, q_row, count, D, q_rows, row)
        copy(dout, dout_row, count, Dv, dout_rows, v_width)
        normalize(lse + size * t, count, normalizers)
        add_deltas(out + size * Dv * t, count, Dv, dot, deltas)
        for d in range(whole_of(D + m, W)):
            store(zeros(1, n, size), sums + size * n * W * d, 0)

    return begin


def _meet(n, size, dropout):
    """A block of keys and the group from position t."""
    width, m = n * target.current().lanes(size), rows()
    add_mask, parts, draw = pack_mask(n, size, size), _parts(n, size), multipliers(n, size)
    weigh, differentiate = weights(n, size), score_gradients(n, size, dropout)
    to_queries, to_keys = add_over_keys(n, size), add_over_queries(n, size)

    @inner
    def meet(state, t, arguments):
        copies, start, keys, T, (mask, mask_row, mask_kind, causal), dropped, p = arguments
        (k, dk, row, D), (v, dv, v_width, Dv) = copies
        count = min(keys, t + width - start) if causal else keys
        if count <= 0:
            return
        normalizers, deltas, qt, dot, sums, q_rows, dout_rows = parts(state, copies)
        block = size * width * BLOCK
        ds, added, kept = p + block, 0, p + 3 * block
        if mask_kind != NO_MASK:
            added = p + 2 * block
            at = mask + (1 if mask_kind == BOOLS else size) * mask_row * t
            add_mask(at, mask_row, mask_kind, T - t, start, count, added)
        if dropout:
            draw(dropped, t, start, -(-count // m) * m, kept)
        diagonal = start - t if causal else -2 * BLOCK
        weigh(k, row, count, D, qt, added, diagonal, normalizers, p)
        differentiate(v, v_width, count, Dv, dot, deltas, kept, p, ds)
        to_queries(k, row, count, D, ds, sums)
        to_keys(p, count, diagonal, min(width, T - t), dout_rows, v_width, Dv, dv)
        to_keys(ds, count, diagonal, min(width, T - t), q_rows, row, D, dk)

    return meet


def _end(n, size):
    write, parts = finish(n, size, size, divided=False), _parts(n, size)

    @inner
    def end(state, t, arguments):
        dq, T, copies = arguments
        D = copies[0][3]
        write(parts(state, copies)[4], 0, T - t, D, dq + size * D * t)

    return end
