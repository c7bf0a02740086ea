"""Gradients of exact attention, from lse and the output: the scores are computed again (Dao, "FlashAttention-2", 2023).

With P = exp(scores - lse) and delta = sum(out dout) a query: dV = P^T dO, dS = P (dO V^T - delta), dQ = scale dS K,
dK = scale dS^T Q; with dropout, the P of dV and dO V^T are dropped and rescaled as P was, and delta stands. One kernel
for dk and dv, one for dq, so that each result has one owner: no atomics, and the same bits every time. Operations:
2 B N T S (2 D + 2 E) and 2 B N T S (2 D + E), half of it if causal. Bytes: each program reads the whole other side,
mostly from the second-level cache; results are written once.
"""

import triton
import triton.language as tl

from .attention_forward import LOG2_E, load_block, scores_of, store_block
from .dropout import drop


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
    rows, keys = tl.arange(0, QUERIES), tl.arange(0, KEYS)[:, None]
    units, outputs = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    k_block = load_block(k + b * k_batch + m * k_head, k_row, key, keys, units[None, :], S, D, True)
    v_block = load_block(v + b * v_batch + m * v_head, v_row, key, keys, outputs[None, :], S, E, True)
    dk_block = tl.zeros((KEYS, BLOCK_D), tl.float32)
    dv_block = tl.zeros((KEYS, BLOCK_E), tl.float32)
    first = 0
    if CAUSAL:
        first = key // QUERIES * QUERIES
    for n in range(m * GROUP, (m + 1) * GROUP):
        head_mask = mask
        if mask is not None:
            head_mask = mask + b * mask_batch + n * mask_head
        q_head_n, dout_head_n = q + b * q_batch + n * q_head, dout + b * dout_batch + n * dout_head
        for query in range(first, T, QUERIES):
            q_block = load_block(q_head_n, q_row, query, rows[:, None], units[None, :], T, D, True)
            dout_block = load_block(dout_head_n, dout_row, query, rows[:, None], outputs[None, :], T, E, True)
            scores = scores_of(
                k_block, tl.trans(q_block), head_mask, mask_query, mask_key, query + rows[None, :], key + keys, T, S,
                scale, CAUSAL, True, PRECISION,
            )  # fmt: skip
            row = (b * N + n) * T + query
            weights = _weights(scores, lse + row + rows[None, :], query + rows[None, :], T)
            kept = drop(weights, seed, threshold, b * N + n, query + rows[None, :], key, True)
            dv_block = tl.dot(kept.to(dout.dtype.element_ty), dout_block, dv_block, input_precision=PRECISION)
            dweights = tl.dot(v_block, tl.trans(dout_block), input_precision=PRECISION)
            dweights = drop(dweights, seed, threshold, b * N + n, query + rows[None, :], key, True)
            if seed is not None:
                dweights *= rescale
            delta_row = tl.load(delta + row + rows[None, :], mask=query + rows[None, :] < T, other=0.0)
            dscores = weights * (dweights - delta_row)
            dk_block = tl.dot(dscores.to(q.dtype.element_ty), q_block, dk_block, input_precision=PRECISION)
    if seed is not None:
        dv_block *= rescale
    store_block(dk + head * S * D, D, key, keys, units[None, :], S, D, dk_block * scale)
    store_block(dv + head * S * E, E, key, keys, outputs[None, :], S, E, dv_block)


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
    k += b * k_batch + n // GROUP * k_head
    v += b * v_batch + n // GROUP * v_head
    if mask is not None:
        mask += b * mask_batch + n * mask_head
    rows, keys = tl.arange(0, QUERIES)[:, None], tl.arange(0, KEYS)
    units, outputs = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_block = load_block(q + b * q_batch + n * q_head, q_row, query, rows, units[None, :], T, D, True)
    dout += b * dout_batch + n * dout_head
    dout_block = load_block(dout, dout_row, query, rows, outputs[None, :], T, E, True)
    row = head * T + query
    delta_column = tl.load(delta + row + rows, mask=query + rows < T, other=0.0)
    dq_block = tl.zeros((QUERIES, BLOCK_D), tl.float32)
    last = S
    if CAUSAL:
        last = tl.minimum(S, query + QUERIES)
    for key in range(0, last, KEYS):
        k_block = load_block(k, k_row, key, keys[:, None], units[None, :], S, D, True)
        v_block = load_block(v, v_row, key, keys[None, :], outputs[:, None], S, E, True)
        scores = scores_of(
            q_block, tl.trans(k_block), mask, mask_query, mask_key, query + rows, key + keys[None, :], T, S, scale,
            CAUSAL, True, PRECISION,
        )  # fmt: skip
        weights = _weights(scores, lse + row + rows, query + rows, T)
        dweights = tl.dot(dout_block, v_block, input_precision=PRECISION)
        dweights = drop(dweights, seed, threshold, head, query + rows, key, False)
        if seed is not None:
            dweights *= rescale
        dscores = weights * (dweights - delta_column)
        dq_block = tl.dot(dscores.to(k.dtype.element_ty), k_block, dq_block, input_precision=PRECISION)
    store_block(dq + head * T * D, D, query, rows, units[None, :], T, D, dq_block * scale)


@triton.jit
def _weights(scores, lse, queries, T):
    """The softmax of scores (in units of log 2) from the queries' lse; 0 for a query that sees no key or is none."""
    normalizer = tl.load(lse, mask=queries < T, other=float("inf")) * LOG2_E
    return tl.exp2(scores - tl.where(normalizer == float("-inf"), 0.0, normalizer))
