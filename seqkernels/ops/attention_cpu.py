"""Attention on the CPU: lays out inputs, splits the work over threads."""

from functools import partial

import torch

from ..kernels.cpu import attention, transposed
from ..kernels.cpu.compile import kernel
from . import threads
from .compiled import computed
from .decode_cpu import decode, remembered
from .rows import dense_rows, place, scale_of, scratch

__all__ = ["decode", "forward", "is_decode", "remembered"]

FEW = 8  # queries: up to here `decode` is the faster one, measured at 64 to 8192 keys
_OPERATIONS_A_TASK = 4e7  # three times what it costs to hand a task to another thread, some 75 microseconds


def forward(q, k, v, mask=None, causal=False, scale=None):
    """softmax(scale q k^T + mask) v, exactly as torch's scaled_dot_product_attention has it.

    q (B, N, T, D), k (B, N_kv, S, D), v (B, N_kv, S, Dv), N a multiple of N_kv; mask None or broadcastable to
    (B, N, T, S), bool (False hides a key, as if -inf were added) or of q's dtype (added); causal hides key s from query
    t < s; scale None is 1 / sqrt(D). Returns (B, N, T, Dv), contiguous. A row that sees no key is 0. float32, float64.
    """
    (B, N, T, D), (S, Dv) = q.shape, v.shape[2:]
    if is_decode(T, S, mask, causal):
        return decode(q, k, v, scale)
    if q.dtype != computed(q.dtype):  # bytes that are few beside the operations
        wide = (t.to(computed(q.dtype)) for t in (q, k, v))
        mask = mask.to(computed(q.dtype)) if mask is not None and mask.dtype == q.dtype else mask
        return forward(*wide, mask, causal, scale).to(q.dtype)
    out, done = _output(q, Dv, S)
    if done:
        return out
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    kind, mask_place = transposed.NO_MASK, (0, 0, 0, 0)
    if mask is not None:
        kind = transposed.BOOLS if mask.dtype == torch.bool else transposed.FLOATS
        mask = _mask_rows(mask, (B, N, T, S))
        mask_place = place(mask)
    size = q.element_size()
    entry = kernel("attention", size=size)
    operations = B * N * T * S * (D + Dv) * (1 if causal else 2)
    tasks = max(1, min(torch.get_num_threads(), int(operations / _OPERATIONS_A_TASK)))
    groups = attention.GROUPS
    while groups > 1 and B * N * attention.items(size, T, groups) < tasks:
        groups //= 2
    items = B * N * attention.items(size, T, groups)
    tasks = min(tasks, items)
    arguments = (*place(q), *place(k), *place(v), *mask_place, kind, out.data_ptr())
    arguments = (*arguments, N, N // k.shape[1], T, S, D, Dv, int(causal))
    need = attention.workspace(size, D, Dv)
    work, start = scratch(tasks * need, q.dtype)
    work[: tasks * need : need] = scale_of(scale, D)
    calls = [(*arguments, start + i * need * size, groups, i, items, tasks) for i in range(tasks)]
    threads.run([partial(entry, *call) for call in calls])
    return out


def is_decode(T, S, mask, causal):
    """Whether T queries over S keys are left to `decode`."""
    return mask is None and T <= FEW and (S == 1 or not causal)


def _output(q, Dv, S):
    """The output (B, N, T, Dv), and whether that is all: it is empty, or zero for want of keys."""
    out = q.new_empty(*q.shape[:3], Dv)
    if S == 0:
        out.zero_()
    return out, S == 0 or out.numel() == 0


def _mask_rows(mask, shape):
    """The mask broadcast to `shape`; only what it holds is copied, and only if its last stride is not 1."""
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    own = mask[tuple(slice(0, 1) if step == 0 else slice(None) for step in mask.stride()[:3])]
    return dense_rows(own.expand(*own.shape[:3], shape[3])).expand(shape)
