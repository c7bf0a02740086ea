"""Gradients of exact attention, from lse and the output: the scores are computed again (Dao, "FlashAttention-2", 2023).

With P = exp(scores - lse) and delta = sum(out dout) a query: dV = P^T dO, dS = P (dO V^T - delta), dQ = scale dS K,
dK = scale dS^T Q; with dropout, the P of dV and dO V^T are dropped and rescaled as P was, and delta stands. One kernel
for dk and dv, one for dq, so that each result has one owner: no atomics, and the same bits every time. Operations:
2 B N T S (2 D + 2 E) and 2 B N T S (2 D + E), half of it if causal. Bytes: each program reads the whole other side,
mostly from the second-level cache; results are written once.
"""

import triton
import triton.language as tl

from .attention_forward import LOG2_E, head_of, load_block, load_rows, scores_of, store_block
from .dropout import dropped, kept


@triton.jit
def attention_delta(
    out, delta,  # (B, N, T, E) contiguous, (B, N, T) float32
    dout, dout_batch, dout_head, dout_row,  # (B, N, T, E)
    N, T, E: tl.constexpr, BLOCK_E: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """delta = sum(out dout) over E: 2 E operations a query, each element read once."""
    blocks = tl.cdiv(T, QUERIES)
    query, head = tl.program_id(0) % blocks * QUERIES, (tl.program_id(0) // blocks).to(tl.int64)
    rows, outputs = tl.arange(0, QUERIES), tl.arange(0, BLOCK_E)[None, :]
    dout += head // N * dout_batch + head % N * dout_head
    a = load_block(out + head * T * E, E, query, rows[:, None], outputs, T, E, True).to(tl.float32)
    b = load_block(dout, dout_row, query, rows[:, None], outputs, T, E, True).to(tl.float32)
    tl.store(delta + head * T + query + rows, tl.sum(a * b, axis=1), mask=query + rows < T)


@triton.jit
def attention_backward_keys(
    q, q_batch, q_head, q_row,  # (B, N, T, D)
    k, k_batch, k_head, k_row,  # (B, M, S, D)
    v, v_batch, v_head, v_row,  # (B, M, S, E)
    mask, mask_batch, mask_head, mask_query, mask_key,  # (B, N, T, S) uint8 or of q's dtype, strides 0 allowed; or None
    dout, dout_batch, dout_head, dout_row,  # (B, N, T, E)
    lse, delta,  # (B, N, T) float32, contiguous
    dk, dv,  # (B, M, S, D) and (B, M, S, E), contiguous
    seed, threshold, rescale,  # as `attention_forward` had them
    N, GROUP, T, S, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, over all queries of all heads of its group. Scores are (KEYS, QUERIES): a product
    of which the transpose is an operand is miscompiled on Hopper, so none is."""
    blocks, M = tl.cdiv(S, KEYS), N // GROUP
    key, head = tl.program_id(0) % blocks * KEYS, (tl.program_id(0) // blocks).to(tl.int64)
    b, m = head // M, head % M
    keys = tl.arange(0, KEYS)[:, None]
    units, outputs = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    k_block = load_block(k + b * k_batch + m * k_head, k_row, key, keys, units[None, :], S, D, True)
    v_block = load_block(v + b * v_batch + m * v_head, v_row, key, keys, outputs[None, :], S, E, True)
    dk_block = tl.zeros((KEYS, BLOCK_D), tl.float32)
    dv_block = tl.zeros((KEYS, BLOCK_E), tl.float32)
    first, below = 0, 0
    whole = T // QUERIES * QUERIES
    if CAUSAL:
        first, below = key // QUERIES * QUERIES, tl.cdiv(key + KEYS - 1, QUERIES) * QUERIES
    # From `below` on, so many queries exist and see every key of the block, all of which exist.
    unchecked = tl.where(key + KEYS <= S, tl.maximum(whole - below, 0), 0)
    for n in tl.range(m * GROUP, (m + 1) * GROUP, disable_licm=True):  # both loops' addresses at once would spill
        head_mask = mask
        if mask is not None:
            head_mask = mask + b * mask_batch + n * mask_head
        head_q = head_of(q, q_batch, q_head, q_row, b, n)
        head_dout = head_of(dout, dout_batch, dout_head, dout_row, b, n)
        dk_block, dv_block = _add_queries(
            dk_block, dv_block, k_block, v_block, head_q, q_row, head_dout, dout_row, b, n, head_mask,
            mask_query, mask_key, lse, delta, seed, threshold, rescale, b * N + n, key,
            below, below + unchecked, below, 0, T, S, scale, D, E, CAUSAL, False, QUERIES, PRECISION,
        )  # fmt: skip
        dk_block, dv_block = _add_queries(
            dk_block, dv_block, k_block, v_block, head_q, q_row, head_dout, dout_row, b, n, head_mask,
            mask_query, mask_key, lse, delta, seed, threshold, rescale, b * N + n, key,
            first, T - unchecked, below, unchecked, T, S, scale, D, E, CAUSAL, True, QUERIES, PRECISION,
        )  # fmt: skip
    if seed is not None:
        dv_block *= rescale
    store_block(dk + head * S * D, D, key, keys, units[None, :], S, D, dk_block * scale)
    store_block(dv + head * S * E, E, key, keys, outputs[None, :], S, E, dv_block)


@triton.jit
def _add_queries(
    dk_block, dv_block, k_block, v_block, q, q_row, dout, dout_row, b, n, mask, mask_query, mask_key, lse, delta,
    seed, threshold, rescale, head, key, first, last, hole, skipped, T, S, scale,
    D: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, CHECKED: tl.constexpr, QUERIES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk (KEYS, BLOCK_D), not scaled, and dv (KEYS, BLOCK_E), not rescaled, with what queries `first` on of one head
    add to them: last - first queries, `skipped` of them being left out at `hole`. Without CHECKED all exist and see
    every key, all of which exist."""
    KEYS: tl.constexpr = k_block.shape[0]
    rows, keys = tl.arange(0, QUERIES), key + tl.arange(0, KEYS)[:, None]
    units, outputs = tl.arange(0, dk_block.shape[1])[None, :], tl.arange(0, dv_block.shape[1])[None, :]
    for start in range(first, last, QUERIES):
        query = start + tl.where(start >= hole, skipped, 0)
        queries = query + rows[None, :]
        q_block = load_rows(q, q_row, b, n, query, rows[:, None], units, T, D, CHECKED)
        dout_block = load_rows(dout, dout_row, b, n, query, rows[:, None], outputs, T, E, CHECKED)
        scores = scores_of(
            k_block, tl.trans(q_block), mask, mask_query, mask_key, queries, keys, T, S, scale,
            CAUSAL, CHECKED, PRECISION,
        )  # fmt: skip
        weights = tl.exp2(scores - _normalizer(lse + head * T, queries, T, CHECKED))
        keep = kept(seed, threshold, head, queries, key, KEYS, True)
        used = dropped(weights, keep).to(dout_block.dtype)
        dv_block = tl.dot(used, dout_block, dv_block, input_precision=PRECISION)
        dweights = dropped(tl.dot(v_block, tl.trans(dout_block), input_precision=PRECISION), keep)
        if seed is not None:
            dweights *= rescale
        dscores = weights * (dweights - _load_row(delta + head * T, queries, T, 0.0, CHECKED))
        dk_block = tl.dot(dscores.to(q_block.dtype), q_block, dk_block, input_precision=PRECISION)
    return dk_block, dv_block


@triton.jit
def attention_backward_queries(
    q, q_batch, q_head, q_row,  # (B, N, T, D)
    k, k_batch, k_head, k_row,  # (B, M, S, D)
    v, v_batch, v_head, v_row,  # (B, M, S, E)
    mask, mask_batch, mask_head, mask_query, mask_key,  # (B, N, T, S) uint8 or of q's dtype, strides 0 allowed; or None
    dout, dout_batch, dout_head, dout_row,  # (B, N, T, E)
    lse, delta,  # (B, N, T) float32, contiguous
    dq,  # (B, N, T, D), contiguous
    seed, threshold, rescale,  # as `attention_forward` had them
    N, GROUP, T, S, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries, over all keys."""
    blocks = tl.cdiv(T, QUERIES)
    block, head = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    if CAUSAL:
        block = blocks - 1 - block  # the longest first
    query, b, n = block * QUERIES, head // N, head % N
    m = n // GROUP
    k, v = head_of(k, k_batch, k_head, k_row, b, m), head_of(v, v_batch, v_head, v_row, b, m)
    if mask is not None:
        mask += b * mask_batch + n * mask_head
    rows = tl.arange(0, QUERIES)[:, None]
    units, outputs = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_block = load_block(q + b * q_batch + n * q_head, q_row, query, rows, units[None, :], T, D, True)
    dout += b * dout_batch + n * dout_head
    dout_block = load_block(dout, dout_row, query, rows, outputs[None, :], T, E, True)
    queries = query + rows
    delta_column = _load_row(delta + head * T, queries, T, 0.0, True)
    normalizer = _normalizer(lse + head * T, queries, T, True)
    dq_block = tl.zeros((QUERIES, BLOCK_D), tl.float32)
    last = S
    whole = S // KEYS * KEYS  # up to here every key of a block exists and every query sees it
    if CAUSAL:
        last = tl.minimum(S, query + QUERIES)
        whole = tl.minimum(whole, (query + 1) // KEYS * KEYS)
    dq_block = _add_keys(
        dq_block, q_block, dout_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, normalizer, delta_column,
        seed, threshold, rescale, head, queries, 0, whole, T, S, scale, D, E, CAUSAL, False, KEYS, PRECISION,
    )  # fmt: skip
    dq_block = _add_keys(
        dq_block, q_block, dout_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, normalizer, delta_column,
        seed, threshold, rescale, head, queries, whole, last, T, S, scale, D, E, CAUSAL, True, KEYS, PRECISION,
    )  # fmt: skip
    store_block(dq + head * T * D, D, query, rows, units[None, :], T, D, dq_block * scale)


@triton.jit
def _add_keys(
    dq_block, q_block, dout_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, normalizer, delta_column,
    seed, threshold, rescale, head, queries, first, last, T, S, scale,
    D: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, CHECKED: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (QUERIES, BLOCK_D), not scaled, with what keys first ... last - 1 add to it. queries: a column."""
    keys = tl.arange(0, KEYS)
    units, outputs = tl.arange(0, q_block.shape[1])[None, :], tl.arange(0, dout_block.shape[1])[None, :]
    for key in range(first, last, KEYS):
        k_block = load_rows(k, k_row, b, m, key, keys[:, None], units, S, D, CHECKED)
        v_block = load_rows(v, v_row, b, m, key, keys[:, None], outputs, S, E, CHECKED)
        scores = scores_of(
            q_block, tl.trans(k_block), mask, mask_query, mask_key, queries, key + keys[None, :], T, S, scale,
            CAUSAL, CHECKED, PRECISION,
        )  # fmt: skip
        weights = tl.exp2(scores - normalizer)
        dweights = tl.dot(dout_block, tl.trans(v_block), input_precision=PRECISION)
        dweights = dropped(dweights, kept(seed, threshold, head, queries, key, KEYS, False))
        if seed is not None:
            dweights *= rescale
        dscores = weights * (dweights - delta_column)
        dq_block = tl.dot(dscores.to(k_block.dtype), k_block, dq_block, input_precision=PRECISION)
    return dq_block


@triton.jit
def _normalizer(lse, queries, T, CHECKED: tl.constexpr):
    """What to take from scores in units of log 2 so that their exponentials are the softmax, and 0 for a query that
    sees no key or is none."""
    normalizer = _load_row(lse, queries, T, float("inf"), CHECKED) * LOG2_E
    return tl.where(normalizer == float("-inf"), 0.0, normalizer)


@triton.jit
def _load_row(pointer, queries, T, other, CHECKED: tl.constexpr):
    """A head's number for each of the queries, `other` for one that does not exist. Without CHECKED all do."""
    if CHECKED:
        numbers = tl.load(pointer + queries, mask=queries < T, other=other)
    else:
        numbers = tl.load(pointer + queries)
    return numbers
