"""Exact attention of few queries over many keys, which are split over programs: "Flash-Decoding" (Dao et al., 2023).

A program has one head of keys, one range of them, and as rows of its block all the queries of all the heads that share
these keys, so that k and v are read once. For each row and range there is a record, the weighted sum of v, the sum of
the weights and the largest score (a range's lse would not do: with large scores it cannot hold the sum); a second
kernel adds the records up in the order of the ranges: the same bits every time. Of one range the first kernel's result
is the whole, and there is no second. Operations: 2 B N T S (D + E). Bytes: k and v once, which is the floor and what
the time goes to; with more than one range, 8 B N T (E + 2) for each of them, written and read.
"""

import triton
import triton.language as tl

from .attention_forward import LOG2_E, attend, load_block, masked, normalised, store_block


@triton.jit(do_not_specialize=("M", "GROUP", "T", "S", "span", "splits"))
def attention_decode(
    q, q_batch, q_head, q_row,  # (B, N, T, D)
    k, k_batch, k_head, k_row,  # (B, M, S, D)
    v, v_batch, v_head, v_row,  # (B, M, S, E)
    mask, mask_batch, mask_head, mask_query, mask_key,  # (B, N, T, S) uint8 or of q's dtype, strides 0 allowed; or None
    out, lse,  # (B, N, T, E) of q's dtype, (B, N, T) float32, contiguous: written if there are no records
    partial, sums,  # (B, N, T, splits, E), (B, N, T, splits, 2) float32, contiguous; or None, None of one range
    M, GROUP, T, S, span, splits, scale,  # GROUP = N / M query heads share a head of keys; GROUP T <= ROWS
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CAUSAL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention over one of `splits` ranges of `span` keys, a multiple of KEYS."""
    split, head = tl.program_id(0) % splits, (tl.program_id(0) // splits).to(tl.int64)
    b, m, first = head // M, head % M, split * span
    last = tl.minimum(S, first + span)
    rows, units, outputs = tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    row = tl.minimum(rows, GROUP * T - 1)[:, None]  # the rows left over repeat the last
    n, queries = m * GROUP + row // T, row % T
    k += b * k_batch + m * k_head
    v += b * v_batch + m * v_head
    if mask is not None:
        mask = mask + b * mask_batch + n * mask_head
    if ROWS == 1:
        q_one = tl.load(q + b * q_batch + m * q_head + units, mask=units < D, other=0.0)
        acc, total, largest = _attend_one(
            q_one, k, k_row, v, v_row, mask, mask_query, mask_key, queries, first, last, T, S, scale,
            D, E, BLOCK_E, CAUSAL, KEYS, STAGES,
        )  # fmt: skip
    else:
        q_rows = q + b * q_batch + n * q_head + queries.to(tl.int64) * q_row
        q_block = tl.load(q_rows + units[None, :], mask=units[None, :] < D, other=0.0)
        acc = tl.zeros((ROWS, BLOCK_E), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        acc, total, largest = attend(
            acc, total, largest, q_block, k, k_row, v, v_row, b, m, mask, mask_query, mask_key, None, 0, 0, queries,
            first, last, T, S, scale, D, E, CAUSAL, True, KEYS, PRECISION,
        )  # fmt: skip
    count = GROUP * T
    row = head * count + rows
    if partial is None:
        block, natural = normalised(acc, total, largest)
        store_block(out + head * count * E, E, 0, rows[:, None], outputs[None, :], count, E, block)
        tl.store(lse + row, natural, mask=rows < count)
    else:
        record = head * count * splits + split
        store_block(partial + record * E, splits * E, 0, rows[:, None], outputs[None, :], count, E, acc)
        tl.store(sums + 2 * (row * splits + split), total, mask=rows < count)
        tl.store(sums + 2 * (row * splits + split) + 1, largest, mask=rows < count)


@triton.jit
def _attend_one(
    q_one, k, k_row, v, v_row, mask, mask_query, mask_key, queries, first, last, T, S, scale,
    D: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, CAUSAL: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`attend` of one query (BLOCK_D,): as a matrix product 15 of 16 rows would be for nothing, and the exponentials
    would wait for a sum over threads at each block. Here no sum but a score's goes over threads before the end."""
    keys, units = tl.arange(0, KEYS)[:, None], tl.arange(0, q_one.shape[0])[None, :]
    outputs = tl.arange(0, BLOCK_E)[None, :]
    q_block = q_one.to(tl.float32)[None, :]
    acc = tl.zeros((KEYS, BLOCK_E), tl.float32)
    total = tl.zeros((KEYS, 1), tl.float32)
    largest = tl.full((KEYS, 1), float("-inf"), tl.float32)
    for key in tl.range(first, last, KEYS, num_stages=STAGES):
        k_block = load_block(k, k_row, key, keys, units, S, D, True).to(tl.float32)
        scores = tl.sum(q_block * k_block, axis=1, keep_dims=True) * (scale * LOG2_E)
        scores = masked(scores, mask, mask_query, mask_key, queries, key + keys, T, S, CAUSAL, True)
        v_block = load_block(v, v_row, key, keys, outputs, S, E, True).to(tl.float32)
        acc, total, largest = _added(acc, total, largest, v_block, 1.0, scores)
    return _summed(acc, total, largest)


@triton.jit(do_not_specialize=("splits",))
def attention_combine(
    partial, sums,  # (rows, splits, E), (rows, splits, 2) float32, contiguous
    out, lse,  # (rows, E), (rows,) float32, contiguous
    splits, E: tl.constexpr, BLOCK_E: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """A row's output and lse from its records of `attention_decode`, SPLITS of them at a time."""
    row, ranges, outputs = tl.program_id(0).to(tl.int64), tl.arange(0, SPLITS)[:, None], tl.arange(0, BLOCK_E)[None, :]
    partial += row * splits * E
    sums += row * splits * 2
    acc = tl.zeros((SPLITS, BLOCK_E), tl.float32)
    total = tl.zeros((SPLITS, 1), tl.float32)
    largest = tl.full((SPLITS, 1), float("-inf"), tl.float32)
    for first in range(0, splits, SPLITS):
        inside, record = ranges < splits - first, sums + 2 * (first + ranges)
        weights = tl.load(record, mask=inside, other=0.0)
        scores = tl.load(record + 1, mask=inside, other=float("-inf"))
        block = load_block(partial, E, first, ranges, outputs, splits, E, True)
        acc, total, largest = _added(acc, total, largest, block, weights, scores)
    acc, total, largest = _summed(acc, total, largest)
    block, natural = normalised(acc, total, largest)
    one = tl.arange(0, 1)
    store_block(out + row * E, E, 0, one[:, None], outputs, 1, E, block)
    tl.store(lse + row + one, natural)


@triton.jit
def _added(acc, total, largest, values, sums, scores):
    """A record a place, (SIZE, BLOCK_E), (SIZE, 1) and (SIZE, 1), each added to that of its own place: no sum over
    places. Sums are relative to the score, in units of log 2. A key's record is its value, 1 and its score."""
    larger = tl.maximum(largest, scores)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    weights, decay = tl.exp2(scores - base), tl.exp2(largest - base)
    return acc * decay + values * weights, total * decay + sums * weights, larger


@triton.jit
def _summed(acc, total, largest):
    """The sums over the places of what `_added` returns: (1, BLOCK_E), (1,) and (1,), as `attend` has them of a row."""
    top = tl.max(largest, axis=0, keep_dims=True)
    share = tl.exp2(largest - tl.where(top == float("-inf"), 0.0, top))
    return tl.sum(acc * share, axis=0, keep_dims=True), tl.sum(total * share, axis=0), tl.max(largest, axis=0)
