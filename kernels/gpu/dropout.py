"""Dropout of attention's weights on blocks (`kernels.dropout` says which)."""

import triton
import triton.language as tl

from ..dropout import ROUNDS

_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def kept(seed, threshold, head, queries, key, KEYS: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """Which weights dropout keeps: (KEYS, queries) with KEYS_FIRST, else (queries, KEYS), of these queries (a row, or a
    column) and of the keys from `key` on; None where the seed, a pointer to int64, is None: all of them.

    head: b N + n; key and KEYS are multiples of 8. One call of the generator serves eight keys.
    """
    mask = None
    if seed is not None:
        if KEYS_FIRST:
            eighths = (key // 8 + tl.arange(0, KEYS // 8))[:, None]
            number = _number(_words(seed, eighths, queries, head), 1, tl.arange(0, 8)[None, :, None])
            number = tl.reshape(number, (KEYS, queries.shape[1]))
        else:
            eighths = (key // 8 + tl.arange(0, KEYS // 8))[None, :]
            number = _number(_words(seed, eighths, queries, head), 2, tl.arange(0, 8)[None, None, :])
            number = tl.reshape(number, (queries.shape[0], KEYS))
        mask = number >= threshold
    return mask


@triton.jit
def dropped(block, mask):
    """The block, zero where the mask of `kept` is false."""
    if mask is not None:
        block = tl.where(mask, block, 0.0)
    return block


@triton.jit
def _words(seed, eighths, queries, head):
    """The generator's four words for each group of eight keys and each query."""
    zero = tl.zeros_like(eighths + queries)
    return tl.philox(tl.load(seed), zero + eighths, zero + queries, zero + head.to(tl.int32), zero, _ROUNDS)


@triton.jit
def _number(words, AXIS: tl.constexpr, eighth):
    """For each of eight keys along a new axis its 16 bits."""
    low = tl.where(eighth < 2, tl.expand_dims(words[0], AXIS), tl.expand_dims(words[1], AXIS))
    high = tl.where(eighth < 6, tl.expand_dims(words[2], AXIS), tl.expand_dims(words[3], AXIS))
    word = tl.where(eighth < 4, low, high)
    return ((word >> (eighth % 2 * 16).to(tl.uint32)) & 0xFFFF).to(tl.int32)
