"""Attention of a few queries over the keys of a cache, unmasked, on the CPU, with as little as possible between the
caller and the kernel: what stays the same while the cache fills is worked out once."""

import torch

from .._check import overridden, stored
from ..kernels.cpu import decode as kernels
from ..kernels.cpu.compile import kernel
from . import threads
from .compiled import computed, widths
from .guards import guard
from .rows import dense_rows, place, scale_of, scratch

_BYTES_A_TASK = 1e6  # half of what is worth two threads: 40 us of one core, against 4 us to hand work over


def decode(q, k, v, scale=None, length=None):
    """Attention of a few queries over the first `length` keys (None: all) of a cache, unmasked.

    q (B, N, T, D) with T small, k (B, N_kv, capacity, D), v (B, N_kv, capacity, Dv), read where they lie. Returns
    (B, N, T, Dv), contiguous; 0 for a length of 0. ValueError for a length beyond the capacity. The keys are split by
    their number alone, so the bits do not depend on the threads.
    """
    S = k.shape[2] if length is None else length
    if not 0 <= S <= k.shape[2]:
        raise ValueError(f"length must be between 0 and the {k.shape[2]} keys of the cache, got {S}")
    if S == 0 or 0 in (*q.shape[:3], v.shape[3]):
        return q.new_zeros(*q.shape[:3], v.shape[3])
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    return Decode(q, k, v)(q, k, v, S, scale)


def remembered(q, k, v):
    """A Remembered of such a call, with plain tensors and no gradient to record, or None where it cannot be."""
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1 or len({id(q), id(k), id(v)}) < 3:
        return None
    return Remembered(q, k, v)


class Decode:
    """Decode with tensors of these sizes, the last stride 1, any number of keys, wherever they lie."""

    def __init__(self, q, k, v):
        (B, N, T, D), heads, Dv = q.shape, k.shape[1], v.shape[3]
        (self._size, stored), group, self._D = widths(q.dtype), N // heads, D
        self._shape, self._dtype = (B, N, T, Dv), q.dtype
        self._sizes, self._entry = (N, group, T), kernel("decode", size=self._size, stored=stored)
        self._heads, self._rows, self._values = B * heads, B * N * T, (D, Dv)
        self._need = kernels.workspace(self._size, group * T, D)
        self._record = kernels.of_chunk(self._size, group * T, Dv)
        self._bytes = B * heads * (D + Dv) * stored

    def __call__(self, q, k, v, S, scale):
        size, need = self._size, self._need
        out = q.new_empty(self._shape)
        items = self._heads * kernels.chunks(S)
        tasks = max(1, min(torch.get_num_threads(), items, int(S * self._bytes / _BYTES_A_TASK)))
        work, start = scratch(tasks * need + items * self._record, computed(self._dtype))
        work[: tasks * need : need] = scale_of(scale, self._D)
        places = (*place(q), *place(k), *place(v), out.data_ptr())
        arguments = (*places, *self._sizes, S, *self._values, start + tasks * need * size)
        if tasks == 1:
            self._entry(*arguments, start, 0, items, 1, 0, self._rows)
        else:
            calls = [(*arguments, start + i * need * size, i, items, tasks, 0, 0) for i in range(tasks)]
            threads.run(self._entry, calls)
            self._entry(*arguments, start, 0, 0, 1, 0, self._rows)
        return out


class Remembered:
    """A call of `scaled_dot_product_attention` that was a decode, for calls like it, whatever the cache's strides."""

    def __init__(self, q, k, v):
        self._alike = guard(q, k, v, free_sizes=((1, 2), (2, 2)), free_strides=(0, 1, 2))
        self._records = any(t.requires_grad for t in (q, k, v))
        self._grouped, self._run = q.shape[1] != k.shape[1], Decode(q, k, v)

    def __call__(self, q, k, v, scale, grouped):
        if not self._alike(q, k, v) or (self._records and torch.is_grad_enabled()) or overridden():
            return None
        S = k.shape[2]
        if S == 0 or v.shape[2] != S or (self._grouped and not grouped):
            return None
        stored(("query", q), ("key", k), ("value", v))
        return self._run(q, k, v, S, scale)
