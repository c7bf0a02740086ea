"""Attention on the CPU: checks what the kernels serve, lays out inputs, splits the work over threads."""

import threading
from functools import partial

import torch

from ..kernels.cpu import attention, transposed
from ..kernels.cpu import decode as decoding
from ..kernels.cpu.compile import kernel
from . import threads

FEW = 8  # queries: up to here `decode` is the faster one, measured at 64 to 8192 keys
# Handing a task to another thread costs some 75 microseconds; these take three times that.
_OPERATIONS_A_TASK, _BYTES_A_TASK = 4e7, 5e6
_local = threading.local()


def supports(q, k, v, mask=None):
    """None when `forward` serves these tensors, else the reason why not."""
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.dtype not in (torch.float32, torch.float64):
            return f"{name} is {x.dtype}; the kernels compute in float32 and float64"
        if x.dtype != q.dtype:
            return f"{name} is {x.dtype} and query is {q.dtype}"
        if x.device.type != "cpu":
            return f"{name} is on {x.device}"
        if x.layout != torch.strided:
            return f"{name} has layout {x.layout}"
        if x.dim() != 4:
            return f"{name} has {x.dim()} dimensions, not (batch, heads, length, size)"
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        return f"attn_mask is {mask.dtype}; it may be bool or {q.dtype}"
    return None


def forward(q, k, v, mask=None, causal=False, scale=None):
    """softmax(scale q k^T + mask) v, exactly as torch's scaled_dot_product_attention has it.

    q (B, N, T, D), k (B, N_kv, S, D), v (B, N_kv, S, Dv), N a multiple of N_kv; mask None or broadcastable to
    (B, N, T, S), bool (False hides a key, as if -inf were added) or of q's dtype (added); causal hides key s from query
    t < s; scale None is 1 / sqrt(D). Returns (B, N, T, Dv), contiguous. A row that sees no key is 0. float32, float64.
    """
    (B, N, T, D), (S, Dv) = q.shape, v.shape[2:]
    if mask is None and T <= FEW and (S == 1 or not causal):
        return decode(q, k, v, scale)
    out, done = _output(q, Dv, S)
    if done:
        return out
    q, k, v = _rows(q), _rows(k), _rows(v)
    kind, place = transposed.NO_MASK, (0, 0, 0, 0)
    if mask is not None:
        kind = transposed.BOOLS if mask.dtype == torch.bool else transposed.FLOATS
        mask = _mask_rows(mask, (B, N, T, S))
        place = _place(mask)
    size = q.element_size()
    entry = kernel("attention", size=size)
    operations = B * N * T * S * (D + Dv) * (1 if causal else 2)
    tasks = max(1, min(torch.get_num_threads(), int(operations / _OPERATIONS_A_TASK)))
    groups = attention.GROUPS
    while groups > 1 and B * N * attention.items(size, T, groups) < tasks:
        groups //= 2
    items = B * N * attention.items(size, T, groups)
    tasks = min(tasks, items)
    arguments = (*_place(q), *_place(k), *_place(v), *place, kind, out.data_ptr())
    arguments = (*arguments, N, N // k.shape[1], T, S, D, Dv, int(causal))
    need = attention.workspace(size, D, Dv)
    work, start = _workspace(tasks * need, q.dtype)
    work[: tasks * need : need] = _factor(scale, D)
    calls = [(*arguments, start + i * need * size, groups, i, items, tasks) for i in range(tasks)]
    threads.run([partial(entry, *call) for call in calls])
    return out


def decode(q, k, v, scale=None, length=None):
    """Attention of a few queries over the first `length` keys (None: all) of a cache, unmasked.

    q (B, N, T, D) with T small, k (B, N_kv, capacity, D), v (B, N_kv, capacity, Dv), read where they lie. Returns
    (B, N, T, Dv), contiguous; 0 for a length of 0. ValueError for a length beyond the capacity. The keys are split by
    their number alone, so the bits do not depend on the threads.
    """
    (B, N, T, D), heads, Dv = q.shape, k.shape[1], v.shape[3]
    S = k.shape[2] if length is None else length
    if not 0 <= S <= k.shape[2]:
        raise ValueError(f"length must be between 0 and the {k.shape[2]} keys of the cache, got {S}")
    out, done = _output(q, Dv, S)
    if done:
        return out
    q, k, v = _rows(q), _rows(k), _rows(v)
    size, group = q.element_size(), N // heads
    entry = kernel("decode", size=size)
    rows, items = B * N * T, B * heads * decoding.chunks(S)
    tasks = max(1, min(torch.get_num_threads(), items, int(B * heads * S * (D + Dv) * size / _BYTES_A_TASK)))
    need, records = decoding.workspace(size, group * T, D), items * group * T * decoding.record(size, Dv)
    work, start = _workspace(tasks * need + records, q.dtype)
    work[: tasks * need : need] = _factor(scale, D)
    place = start + tasks * need * size
    arguments = (*_place(q), *_place(k), *_place(v), out.data_ptr(), N, group, T, S, D, Dv, place)
    if tasks == 1:
        entry(*arguments, start, 0, items, 1, 0, rows)
        return out
    calls = [(*arguments, start + i * need * size, i, items, tasks, 0, 0) for i in range(tasks)]
    threads.run([partial(entry, *call) for call in calls])
    entry(*arguments, start, 0, 0, 1, 0, rows)
    return out


def _output(q, Dv, S):
    """The output (B, N, T, Dv), and whether that is all: it is empty, or zero for want of keys."""
    out = q.new_empty(*q.shape[:3], Dv)
    if S == 0:
        out.zero_()
    return out, S == 0 or out.numel() == 0


def _factor(scale, D):
    """The scale; without dimensions every score is 0 whatever it is."""
    return scale if scale is not None else D**-0.5 if D else 1.0


def _place(x):
    """Address, and strides but the last, in elements."""
    return (x.data_ptr(), *x.stride()[:3])


def _rows(x):
    """x itself if its last stride is 1, else a copy of which it is."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if x.stride()[3] == 1 or x.shape[3] == 1 else x.contiguous()


def _mask_rows(mask, shape):
    """The mask broadcast to `shape`; only what it holds is copied, and only if its last stride is not 1."""
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    own = mask[tuple(slice(0, 1) if step == 0 else slice(None) for step in mask.stride()[:3])]
    return _rows(own.expand(*own.shape[:3], shape[3])).expand(shape)


def _workspace(elements, dtype):
    """This thread's scratch memory, kept for its next call: a numpy array of dtype, and its address."""
    kept = _local.__dict__.get(dtype)
    if kept is None or kept[0].size < elements:
        memory = torch.empty(elements, dtype=dtype, device="cpu")
        kept = _local.__dict__[dtype] = memory.numpy(), memory.data_ptr()
    return kept
