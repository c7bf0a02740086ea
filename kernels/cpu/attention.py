"""Exact attention forward with an online softmax, transposed: queries in the lanes, keys and dimensions broadcast.

A group of queries (n vectors of W) meets the keys BLOCK at a time: scores S^T[key][query], then exponentials in place,
then O^T[dimension][query]. The softmax's maximum, sum and rescaling stay within lanes, and the scores of one block are
all that there ever is of the T x S matrix. Several groups pass over a block of K and V while it is in the second cache,
in a copy whose rows do not compete for the same places of the first; one group reads K and V where they lie. A group is
computed on its own: its bits do not depend on who computes it, nor on which groups go together.

bfloat16 is multiplied in pairs, of dimensions in Q K^T and of keys in P V (operands.py), for which P is rounded; sums,
softmax and O^T are float32. K and V are copied for one group too, V by pairs of keys.

Operations: 2 T S (D + Dv), half of it for a causal square. Bytes from outside the caches: K and V once every `groups`.
With dropout, a call of the generator for every eight weights, and a multiplier for each, written once and read once.
"""

from . import target
from .atomics import fetch_add
from .groups import BLOCK, GROUPS, every_group, row, vectors, whole
from .inner import inner
from .layout import terms
from .operands import copy_rows, per_lane, rows_as_terms
from .parts import never_inline, store_part
from .philox import multipliers
from .softmax import advance, exponentials, log_sums, reset
from .tiles import zeros
from .transposed import BOOLS, NO_MASK, add_values, finish, pack_mask, pack_queries, scores

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
    "groups",  # of queries that go together, up to GROUPS
    "work",  # `workspace(size, stored, D, Dv)` lanes: the first holds the scale, the second what dropout rescales by
    "taken",  # the address of an integer that callers share, 0 at first: how many items are taken
    "items",  # of all heads, `items(size, T, groups)` of each
)


def items(size, T, groups):
    """Items of a head: `groups` of queries each; where the last ones do not fill a group, groups of one vector."""
    return -(-T // (target.current().lanes(size) * vectors() * groups))


def workspace(size, stored, D, Dv):
    """Lanes of scratch memory that one caller needs."""
    W, n, K = target.current().lanes(size), vectors(), terms(D, size, stored)
    blocks = BLOCK * (3 * n * W + row(K, W)) + terms(BLOCK, size, stored) * row(Dv, W)
    return W + blocks + GROUPS * n * W * (5 + whole(K, W) + whole(Dv, W))


def build(size, stored, dropout):
    """stored: bytes of an element of q, k, v, a mask of floats, and out: `size` or 2, bfloat16."""
    W, n = target.current().lanes(size), vectors()
    vector, pairs = W * size, per_lane(size, stored) > 1
    begin, end = every_group(_begin, size, stored), every_group(_end, size, stored)
    meet = every_group(_meet, size, stored, dropout)
    copy_keys, copy_values, terms_of = copy_rows(size, stored), rows_as_terms(size, stored), inner(terms)
    row_of, whole_of = inner(row), inner(whole)

    @inner
    def item(queries, keys, values, hidden, dropped, out, t, count, work):
        """`count` vectors of queries of one head from position t."""
        (k, k_row, S, D), (v, v_row, Dv) = keys, values
        K, values_row = terms_of(D, size, stored), row_of(Dv, W)
        keys_row, k_copy = row_of(K, W), work + vector * (1 + 3 * n * BLOCK)
        v_copy = k_copy + size * BLOCK * keys_row
        states = v_copy + size * terms_of(BLOCK, size, stored) * values_row
        each = vector * (5 + whole_of(K, W) + whole_of(Dv, W))
        begin(states, each, t, count, (queries, work, D))
        last = min(S, t + count * W) if hidden[3] else S
        for start in range(0, last, BLOCK):
            block_k, block_v = (k + stored * k_row * start, k_row), (v + stored * v_row * start, v_row)
            if pairs or count > n:
                copy_keys(*block_k, min(BLOCK, last - start), D, k_copy, keys_row)
                copy_values(*block_v, min(BLOCK, last - start), Dv, v_copy, values_row)
                block_k, block_v = (k_copy, keys_row), (v_copy, values_row)
            meet(states, each, t, count, (block_k, block_v, start, S, D, Dv, hidden, dropped, queries[2], work))
        end(states, each, t, count, (queries[2], D, Dv, *out))

    @inner
    def compute(q, k, v, mask, sizes, results, generator, groups, work, taken, items):
        """Of all heads' items, a causal head's longest first; q, k, v, mask: (address, batch, head and row strides)."""
        never_inline()
        mask_kind, N, group, T, S, D, Dv, causal = sizes
        mask_size = 1 if mask_kind == BOOLS else stored
        count, together = -(-T // W), groups * n
        items_a_head = -(-count // together)
        i = fetch_add(taken, 1)
        while i < items:
            head, at = i // items_a_head, (items_a_head - 1 - i % items_a_head) * together
            b, h = head // N, head % N
            queries = (q[0] + stored * (q[1] * b + q[2] * h), q[3], T)
            keys = (k[0] + stored * (k[1] * b + k[2] * (h // group)), k[3], S, D)
            values = (v[0] + stored * (v[1] * b + v[2] * (h // group)), v[3], Dv)
            hidden = (mask[0] + mask_size * (mask[1] * b + mask[2] * h), mask[3], mask_kind, causal)
            dropped = (*generator, work + size, head)
            out = (results[0] + stored * Dv * T * head, results[1] + size * T * head if results[1] else 0)
            item(queries, keys, values, hidden, dropped, out, at * W, min(together, count - at), work)
            i = fetch_add(taken, 1)

    @inner
    def run(
        q, q_batch, q_head, q_row, k, k_batch, k_head, k_row, v, v_batch, v_head, v_row, mask, mask_batch, mask_head,
        mask_row, mask_kind, out, N, group, T, S, D, Dv, causal, lse, seed, threshold, groups, work, taken, items,
    ):  # fmt: skip
        q, k, v = (q, q_batch, q_head, q_row), (k, k_batch, k_head, k_row), (v, v_batch, v_head, v_row)
        mask, sizes = (mask, mask_batch, mask_head, mask_row), (mask_kind, N, group, T, S, D, Dv, causal)
        compute(q, k, v, mask, sizes, (out, lse), (seed, threshold), groups, work, taken, items)

    return run


def _parts(n, size, stored):
    """The parts of a group's state: (highest, before, reference, total, alpha), Q^T and O^T."""
    row = n * target.current().lanes(size) * size
    W, whole_of, terms_of = target.current().lanes(size), inner(whole), inner(terms)

    @inner
    def parts(state, D):
        qt = state + 5 * row
        softmax = state, state + row, state + 2 * row, state + 3 * row, state + 4 * row
        return softmax, qt, qt + whole_of(terms_of(D, size, stored), W) * row

    return parts


def _begin(n, size, stored):
    pack, parts = pack_queries(n, size, stored), _parts(n, size, stored)

    @inner
    def begin(state, t, arguments):
        (q, q_row, T), scale, D = arguments
        softmax, qt, _ = parts(state, D)
        pack((q + stored * q_row * t, q_row, T - t, D), scale, qt)
        reset(zeros(1, n, size), softmax)

    return begin


def _meet(n, size, stored, dropout):
    """A block of keys and the group from position t."""
    W = target.current().lanes(size)
    width = n * W
    add_mask, parts, draw = pack_mask(n, size, stored), _parts(n, size, stored), multipliers(n, size)
    score, add_up = scores(n, size, stored), add_values(n, size, stored)
    exponentiate = exponentials(n, size, stored, dropout)

    @inner
    def meet(state, t, arguments):
        """`count` is odd only where S ends: half of a pair with a key of the future would be that times 0."""
        (k, k_row), (v, v_row), start, S, D, Dv, (mask, mask_row, mask_kind, causal), dropped, T, work = arguments
        count = min(BLOCK, (min(S, t + width) if causal else S) - start)
        if count <= 0:
            return
        softmax, qt, ot = parts(state, D)
        p = work + size * W
        added, kept = 0, p + 2 * size * width * BLOCK
        if mask_kind != NO_MASK:
            added = p + size * width * BLOCK
            at = mask + (1 if mask_kind == BOOLS else stored) * mask_row * t
            add_mask(at, mask_row, mask_kind, T - t, start, count, added)
        score(k, k_row, count, D, qt, work, added, start - t if causal else -2 * BLOCK, p, softmax[0])
        advance(zeros(1, n, size), softmax)
        if dropout:
            draw(dropped, t, start, count, kept)
        exponentiate(p, count, softmax, kept)
        add_up(v, v_row, count, Dv, p, ot, softmax[4], start == 0)

    return meet


def _end(n, size, stored):
    write, parts = finish(n, size, stored), _parts(n, size, stored)

    @inner
    def end(state, t, arguments):
        T, D, Dv, out, lse = arguments
        softmax, _, ot = parts(state, D)
        write(ot, softmax[3], T - t, Dv, out + stored * Dv * t)
        if lse:
            store_part(log_sums(zeros(1, n, size), (softmax[2], softmax[3])), (lse + size * t, 0, 1, T - t))

    return end
