"""Exact attention forward: softmax(scale q k^T + mask) v without the scores ever in memory.

A program has a block of queries of one head and goes over the keys block by block with the softmax normalised online
(Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018); the division comes once, at the end, and the
logarithm of the sum is kept for backward (Dao, "FlashAttention-2", 2023). Exponentials are of base 2, log2(e) being
part of the scale. Operations: 2 B N T S (D + E), half of it if causal. Bytes: q, out and lse once; k and v once for
each block of queries, mostly from the second-level cache. What a loop reads, here k and v, comes as a pointer with
strides, or as a tensor descriptor of blocks (1, 1, rows, columns) with None for strides: `head_of`, `load_rows`.
"""

import triton
import triton.language as tl

from .dropout import dropped, kept

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_forward(
    q, q_batch, q_head, q_row,  # (B, N, T, D)
    k, k_batch, k_head, k_row,  # (B, M, S, D)
    v, v_batch, v_head, v_row,  # (B, M, S, E)
    mask, mask_batch, mask_head, mask_query, mask_key,  # (B, N, T, S) uint8 or of q's dtype, strides 0 allowed; or None
    out, lse,  # (B, N, T, E) of q's dtype, (B, N, T) float32: contiguous
    seed, threshold, rescale,  # dropout of the weights (`kernels.dropout`): int64, or None for none
    N, GROUP, T, S, scale,  # GROUP = N / M query heads share a head of keys
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T, QUERIES)
    block, head = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    if CAUSAL:
        block = blocks - 1 - block  # the longest first
    query, b, n = block * QUERIES, head // N, head % N
    m = n // GROUP
    k, v = head_of(k, k_batch, k_head, k_row, b, m), head_of(v, v_batch, v_head, v_row, b, m)
    if mask is not None:
        mask += b * mask_batch + n * mask_head
    rows, units, outputs = tl.arange(0, QUERIES), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    q_block = load_block(q + b * q_batch + n * q_head, q_row, query, rows[:, None], units[None, :], T, D, True)
    acc = tl.zeros((QUERIES, BLOCK_E), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    last = S
    whole = S // KEYS * KEYS  # up to here every key of a block exists and every query sees it
    if CAUSAL:
        last = tl.minimum(S, query + QUERIES)
        whole = tl.minimum(whole, (query + 1) // KEYS * KEYS)
    queries = query + rows[:, None]
    acc, total, largest = attend(
        acc, total, largest, q_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, seed, threshold, head,
        queries, 0, whole, T, S, scale, D, E, CAUSAL, False, KEYS, PRECISION,
    )  # fmt: skip
    acc, total, largest = attend(
        acc, total, largest, q_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, seed, threshold, head,
        queries, whole, last, T, S, scale, D, E, CAUSAL, True, KEYS, PRECISION,
    )  # fmt: skip
    if seed is not None:
        acc *= rescale
    block, natural = normalised(acc, total, largest)
    store_block(out + head * T * E, E, query, rows[:, None], outputs[None, :], T, E, block)
    tl.store(lse + head * T + query + rows, natural, mask=query + rows < T)


@triton.jit
def attend(
    acc, total, largest, q_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, seed, threshold, head, queries,
    first, last, T, S, scale,
    D: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, CHECKED: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The block of queries over the keys first ... last - 1: the weighted sum of v (QUERIES, BLOCK_E), the sum of the
    weights and the largest score so far, the weights being relative to it. k, v: `head_of` b, m; queries: a column."""
    keys = tl.arange(0, KEYS)
    units, outputs = tl.arange(0, q_block.shape[1])[None, :], tl.arange(0, acc.shape[1])[None, :]
    for key in range(first, last, KEYS):
        k_block = load_rows(k, k_row, b, m, key, keys[:, None], units, S, D, CHECKED)
        scores = scores_of(
            q_block, tl.trans(k_block), mask, mask_query, mask_key, queries, key + keys[None, :], T, S, scale,
            CAUSAL, CHECKED, PRECISION,
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(largest - base)
        total = total * decay + tl.sum(weights, axis=1)
        weights = dropped(weights, kept(seed, threshold, head, queries, key, KEYS, False))
        v_block = load_rows(v, v_row, b, m, key, keys[:, None], outputs, S, E, CHECKED)
        acc = tl.dot(weights.to(v_block.dtype), v_block, acc * decay[:, None], input_precision=PRECISION)
        largest = larger
    return acc, total, largest


@triton.jit
def normalised(acc, total, largest):
    """The output (QUERIES, BLOCK_E) and lse (QUERIES,), natural, of what `attend` returns; 0 and -inf without keys."""
    total = tl.where(total == 0.0, 1.0, total)
    return acc / total[:, None], (largest + tl.log2(total)) / LOG2_E


@triton.jit
def scores_of(
    a, b, mask, mask_query, mask_key, queries, keys, T, S, scale,
    CAUSAL: tl.constexpr, CHECKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores a b times scale plus mask, in units of log 2, as `masked` has them."""
    scores = tl.dot(a, b, input_precision=PRECISION) * (scale * LOG2_E)
    return masked(scores, mask, mask_query, mask_key, queries, keys, T, S, CAUSAL, CHECKED)


@triton.jit
def masked(
    scores, mask, mask_query, mask_key, queries, keys, T, S, CAUSAL: tl.constexpr, CHECKED: tl.constexpr
):  # fmt: skip
    """Scores plus mask, either way round: `queries` and `keys` are a column and a row, or a row and a column. `mask`
    is one pointer, or one for each query. CHECKED: keys that do not exist, or that `CAUSAL` hides, get -inf."""
    if mask is not None:
        offsets = queries.to(tl.int64) * mask_query + keys.to(tl.int64) * mask_key
        values = tl.load(mask + offsets, mask=(queries < T) & (keys < S), other=0)
        if mask.dtype.element_ty == tl.uint8:
            scores += tl.where(values != 0, 0.0, float("-inf"))  # added, so that NaN stays
        else:
            scores += values.to(tl.float32) * LOG2_E
    if CHECKED:
        scores = tl.where(keys < S, scores, float("-inf"))
        if CAUSAL:
            scores = tl.where(keys <= queries, scores, float("-inf"))
    return scores


@triton.jit
def head_of(x, batch_stride, head_stride, row_stride, b, head):
    """Where a head's rows begin, for `load_rows`. A tensor descriptor, whose strides are None, is that of all heads."""
    if row_stride is not None:
        x += b * batch_stride + head * head_stride
    return x


@triton.jit
def load_rows(x, row_stride, b, head, first, rows, columns, count, SIZE: tl.constexpr, CHECKED: tl.constexpr):
    """`load_block` of what `head_of` returned. rows: a column; columns: a row, as long as the descriptor's blocks."""
    if row_stride is None:
        block = x.load([tl.cast(b, tl.int32), tl.cast(head, tl.int32), first, 0])
        block = tl.reshape(block, (rows.shape[0], columns.shape[1]))
    else:
        block = load_block(x, row_stride, first, rows, columns, count, SIZE, CHECKED)
    return block


@triton.jit
def load_block(pointer, stride, first, rows, columns, count, SIZE: tl.constexpr, CHECKED: tl.constexpr):
    """Rows first + rows of a matrix (count, SIZE), zero outside; `rows` and `columns` say which way round. Without
    CHECKED all these rows exist."""
    inside = columns < SIZE
    if CHECKED:
        inside = inside & (rows < count - first)
    pointers = pointer + tl.cast(first, tl.int64) * stride + (rows.to(tl.int64) * stride + columns)
    if CHECKED or columns.shape[0] * columns.shape[1] != SIZE:
        block = tl.load(pointers, mask=inside, other=0.0)
    else:
        block = tl.load(pointers)
    return block


@triton.jit
def store_block(pointer, stride, first, rows, columns, count, SIZE: tl.constexpr, block):
    """The counterpart of `load_block`, in the memory's dtype."""
    pointers = pointer + tl.cast(first, tl.int64) * stride + (rows.to(tl.int64) * stride + columns)
    inside = (columns < SIZE) & (rows < count - first)
    tl.store(pointers, block.to(pointer.dtype.element_ty), mask=inside)
