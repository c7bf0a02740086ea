"""Gradients of exact attention, from lse and the output: the weights are made again (Dao, "FlashAttention-2", 2023).

With P = e^(scores - lse), transposed as in attention.py, and delta = sum(out dO) a query: dV = P^T dO,
dS = P (dO V^T - delta), dQ = dS K and dK = dS^T Q. dO^T and delta carry the scale, and with it dS. With dropout dO V^T,
and the P of dV, are times what P was multiplied by.

An item is a chunk of the keys of one head of K and V and owns their dK and dV, which it adds up over all heads of the
group and over all queries, in order. Several groups of queries, whose Q^T, dO^T, Q, dO and dQ^T stay in the second
cache, go over the chunk together: a block of keys and of its dK and dV is fetched once for all of them. Chunks have
sums of dQ of their own, which the caller adds up. How many there are depends on the sizes alone.

Of bfloat16 the products are of pairs: of dimensions in Q K^T and dO V^T, of queries in dK and dV, of keys in dQ, for
which K is copied twice. P and dS are rounded for them; the scale is not on dO^T and delta then, but on dS before that.

Operations: 5 products, 2 T S (3 D + 2 Dv), half of it for a causal square. Bytes from outside the second cache, for a
block of keys: K, V, dK and dV once every `together` groups; for a group of queries: Q, dO and out read and dQ written
once a chunk. Packing them costs as much as some ten keys, so that a chunk has hundreds.
"""

from . import target
from .atomics import fetch_add
from .attention import BOOLS, NO_MASK
from .groups import BLOCK, GROUPS, every_group, row, vectors, whole
from .inner import inner
from .layout import terms
from .operands import fetch_rows, rows_as_terms, write_rows
from .parts import never_inline
from .philox import multipliers
from .tiles import store, zeros
from .transposed import finish, pack_mask, pack_queries
from .transposed_gradients import (
    add_over_keys,
    add_over_queries,
    pack_deltas,
    pack_normalizers,
    rows,
    score_gradients,
    weights,
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
    *("groups", "each"),  # `together(size, stored, D, Dv)`, `each(size, stored, D, Dv)`
    "work",  # `workspace(size, stored, D, Dv)` lanes: the first holds the scale, the second what dropout rescales by
    "taken",  # the address of an integer that callers share, 0 at first: how many items are taken
    "items",  # of all heads, the chunks of each
)
_STATES = 1 << 18  # bytes of the groups' states: with a block of keys they fill half of a second cache of 1 MiB


def each(size, stored, D, Dv):
    """Lanes of a group's state for each of its queries."""
    W, m = target.current().lanes(size), rows()
    transposed = whole(terms(D, size, stored), W) + whole(terms(Dv, size, stored), W) + whole(D + m, W)
    return 2 + transposed + terms(row(D + m, W) + row(Dv, W), size, stored)


def together(size, stored, D, Dv):
    """Groups of queries that go over the keys together."""
    W = target.current().lanes(size)
    return max(1, min(GROUPS, _STATES // (size * W * vectors() * each(size, stored, D, Dv))))


def workspace(size, stored, D, Dv):
    """Lanes of scratch memory that one caller needs."""
    W, n, m = target.current().lanes(size), vectors(), rows()
    blocks = BLOCK * (_arrays(size, stored) * n * W + 2 * row(D + m, W) + 2 * row(Dv, W))
    blocks += terms(BLOCK, size, stored) * row(D + m, W) if stored < size else 0
    return W + blocks + together(size, stored, D, Dv) * n * W * each(size, stored, D, Dv)


def _arrays(size, stored):
    """How many arrays [key][query] a block has: p, ds, the mask, dropout's multipliers; rows of bfloat16 p and ds."""
    return 4 if size == stored else 5


def build(size, stored, dropout):
    """stored: bytes of an element of what is read, but for lse: `size` or 2, bfloat16."""
    W, m = target.current().lanes(size), rows()
    one_head, row_of = _one_head(size, stored, dropout), inner(row)

    @inner
    def compute(q, k, v, mask, dout, saved, results, sizes, generator, chunk, layout, work, taken, items):
        """Tensors as (address, batch, head and row strides)."""
        never_inline()
        mask_kind, N, group, T, S, D, Dv, causal = sizes
        (out, lse), (dq, dk, dv, partial) = saved, results
        seen, mask_size = min(S, T) if causal else S, 1 if mask_kind == BOOLS else stored
        chunks, i = -(-seen // chunk), fetch_add(taken, 1)
        while i < items:
            head, c = i // chunks, i % chunks
            b, h = head // (N // group), head % (N // group)
            keys = (k[0] + stored * (k[1] * b + k[2] * h), k[3], dk + size * D * S * head, D, row_of(D + m, W))
            values = (v[0] + stored * (v[1] * b + v[2] * h), v[3], dv + size * Dv * S * head, Dv, row_of(Dv, W))
            dq_chunk = partial + size * D * T * (items // chunks * group) * (c - 1) if c else dq
            for j in range(h * group, (h + 1) * group):
                place = b * N + j
                queries = (q[0] + stored * (q[1] * b + q[2] * j), q[3], out + stored * Dv * T * place, T)
                gradients = (dout[0] + stored * (dout[1] * b + dout[2] * j), dout[3], lse + size * T * place)
                hidden = (mask[0] + mask_size * (mask[1] * b + mask[2] * j), mask[3], mask_kind, causal)
                dropped = (*generator, work + size, place)
                of_keys = (chunk * c, min(chunk * (c + 1), seen), j == h * group)
                of_queries = (queries, gradients, dq_chunk + size * D * T * place)
                one_head(of_queries, (keys, values), of_keys, hidden, dropped, layout, work)
            i = fetch_add(taken, 1)

    @inner
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, mask, mask_batch, mask_head,
        mask_row, mask_kind, dout, dout_batch, dout_head, dout_row, out, lse, dq, dk, dv, partial, N, group, T, S, D,
        Dv, causal, seed, threshold, chunk, groups, each, work, taken, items,
    ):  # fmt: skip
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        mask, dout = (mask, mask_batch, mask_head, mask_row), (dout, dout_batch, dout_head, dout_row)
        saved, results, sizes = (out, lse), (dq, dk, dv, partial), (mask_kind, N, group, T, S, D, Dv, causal)
        shared = (chunk, (groups, each), work, taken, items)
        compute(q, k, v, mask, dout, saved, results, sizes, (seed, threshold), *shared)

    return run


def _one_head(size, stored, dropout):
    """What the queries of a head add to dK and dV of a chunk of keys, and their dQ of it."""
    W, n, arrays = target.current().lanes(size), vectors(), _arrays(size, stored)
    begin, end = every_group(_begin, size, stored), every_group(_end, size, stored)
    meet = every_group(_meet, size, stored, dropout)
    fetch, write, pairs = fetch_rows(size, stored), write_rows(size), stored < size

    @inner
    def run(queries, tensors, chunk, hidden, dropped, layout, work):
        (k, k_row, dk, D, row), (v, v_row, dv, Dv, v_width) = tensors
        (start, last, first_head), T, causal = chunk, queries[0][3], hidden[3]
        k_copy = work + size * W * (1 + arrays * n * BLOCK)
        dk_copy, v_copy = k_copy + size * BLOCK * row, k_copy + 2 * size * BLOCK * row
        dv_copy, k_pairs = v_copy + size * BLOCK * v_width, v_copy + 2 * size * BLOCK * v_width
        states = k_pairs + (stored * BLOCK * row if pairs else 0)
        copies = (k_copy, dk_copy, k_pairs if pairs else 0, row, D), (v_copy, dv_copy, 0, v_width, Dv)
        groups, each = layout[0], size * W * layout[1]
        width = groups * n * W
        for t in range(start // width * width if causal else 0, T, width):
            count = min(groups * n, -(-(T - t) // W))
            begin(states, each, t, count, (queries, copies, work))
            for s in range(start, min(last, t + width) if causal else last, BLOCK):
                keys, new = min(BLOCK, last - s), first_head and t <= (s if causal else 0)
                fetch(k + stored * k_row * s, k_row, dk + size * D * s, keys, new, copies[0])
                fetch(v + stored * v_row * s, v_row, dv + size * Dv * s, keys, new, copies[1])
                meet(states, each, t, count, (copies, s, keys, T, hidden, dropped, work))
                write(dk_copy, row, keys, D, dk + size * D * s)
                write(dv_copy, v_width, keys, Dv, dv + size * Dv * s)
            end(states, each, t, count, (queries[2], T, copies))

    return run


def _parts(n, size, stored):
    """The parts of a group's state: normalizers, deltas, Q^T, dO^T, dQ^T, Q and dO."""
    W, m = target.current().lanes(size), rows()
    vectors = n * W * size
    whole_of, terms_of = inner(whole), inner(terms)

    @inner
    def parts(state, copies):
        (_, _, _, row, D), (_, _, _, _, Dv) = copies
        qt = state + 2 * vectors
        dot = qt + whole_of(terms_of(D, size, stored), W) * vectors
        sums = dot + whole_of(terms_of(Dv, size, stored), W) * vectors
        q_rows = sums + whole_of(D + m, W) * vectors
        return state, state + vectors, qt, dot, sums, q_rows, q_rows + n * W * stored * row

    return parts


def _begin(n, size, stored):
    W, m = target.current().lanes(size), rows()
    parts, pack, whole_of = _parts(n, size, stored), pack_queries(n, size, stored), inner(whole)
    copy, normalize, add_deltas = rows_as_terms(size, stored), pack_normalizers(n, size), pack_deltas(n, size, stored)

    @inner
    def begin(state, t, arguments):
        ((q, q_row, out, T), (dout, dout_row, lse), _), copies, scale = arguments
        (_, _, _, row, D), (_, _, _, v_width, Dv) = copies
        normalizers, deltas, qt, dot, sums, q_rows, dout_rows = parts(state, copies)
        q, dout, count = q + stored * q_row * t, dout + stored * dout_row * t, min(n * W, T - t)
        pack((q, q_row, count, D), scale, qt)
        pack((dout, dout_row, count, Dv), scale, dot)
        copy(q, q_row, count, D, q_rows, row)
        copy(dout, dout_row, count, Dv, dout_rows, v_width)
        normalize(lse + size * t, count, normalizers)
        add_deltas(out + stored * Dv * t, count, Dv, dot, deltas)
        for d in range(whole_of(D + m, W)):
            store(zeros(1, n, size), sums + size * n * W * d, 0)

    return begin


def _meet(n, size, stored, dropout):
    """A block of keys and the group from position t."""
    width, m, pairs = n * target.current().lanes(size), rows(), stored < size
    add_mask, parts, draw = pack_mask(n, size, stored), _parts(n, size, stored), multipliers(n, size)
    weigh, differentiate = weights(n, size, stored), score_gradients(n, size, stored, dropout)
    to_queries, to_keys = add_over_keys(n, size, stored), add_over_queries(n, size, stored)

    @inner
    def meet(state, t, arguments):
        copies, start, keys, T, (mask, mask_row, mask_kind, causal), dropped, work = arguments
        (k, dk, k_pairs, row, D), (v, dv, _, v_width, Dv) = copies
        count = min(keys, t + width - start) if causal else keys
        if count <= 0:
            return
        normalizers, deltas, qt, dot, sums, q_rows, dout_rows = parts(state, copies)
        block, p = size * width * BLOCK, work + size * width // n
        ds, added, kept = p + block, 0, p + 3 * block
        p_rows, ds_rows = (p + 4 * block, p + 4 * block + block // 2) if pairs else (p, ds)
        if mask_kind != NO_MASK:
            added = p + 2 * block
            at = mask + (1 if mask_kind == BOOLS else stored) * mask_row * t
            add_mask(at, mask_row, mask_kind, T - t, start, count, added)
        if dropout:
            draw(dropped, t, start, -(-count // m) * m, kept)
        diagonal, last = start - t if causal else -2 * BLOCK, min(width, T - t)
        weigh(k, row, count, D, qt, work, added, diagonal, normalizers, p)
        differentiate(v, v_width, count, Dv, dot, work, deltas, kept, p, ds, (p_rows, ds_rows))
        to_queries(k_pairs if pairs else k, row, count, D, ds, sums)
        to_keys(p_rows, count, diagonal, last, dout_rows, v_width, Dv, dv)
        to_keys(ds_rows, count, diagonal, last, q_rows, row, D, dk)

    return meet


def _end(n, size, stored):
    write, parts = finish(n, size, size, divided=False), _parts(n, size, stored)

    @inner
    def end(state, t, arguments):
        (dq, T, copies), D = arguments, arguments[2][0][4]
        write(parts(state, copies)[4], 0, T - t, D, dq + size * D * t)

    return end
