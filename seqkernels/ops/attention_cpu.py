"""Attention on the CPU: lays out inputs, splits the work over threads."""

from array import array

import torch

from ..kernels import dropout
from ..kernels.cpu import attention, attention_backward, groups, transposed
from ..kernels.cpu.compile import kernel
from . import threads
from .compiled import computed, widths
from .decode_cpu import decode, remembered
from .rows import dense_rows, place, scale_of, scratch

__all__ = ["backward", "decode", "forward", "is_decode", "remembered", "with_lse"]

FEW = 8  # queries: up to here `decode` is the faster one, measured at 64 to 8192 keys
_OPERATIONS_A_TASK = 2e6  # 20 us of one core, against 4 us to hand work over
_ITEMS = 16  # of a backward, at least, for as many threads, where chunks are long enough
_CHUNK = 6 * groups.BLOCK  # keys, at least: so that packing the queries for each is a small part


def forward(q, k, v, mask=None, causal=False, scale=None, dropout_p=0.0, seed=None):
    """softmax(scale q k^T + mask) v, exactly as torch's scaled_dot_product_attention has it.

    q (B, N, T, D), k (B, N_kv, S, D), v (B, N_kv, S, Dv), N a multiple of N_kv; mask None or broadcastable to
    (B, N, T, S), bool (False hides a key, as if -inf were added) or of q's dtype (added); causal hides key s from query
    t < s; scale None is 1 / sqrt(D); dropout_p the probability of a weight to be dropped, by the generator of
    `kernels.dropout` under seed (1,), int64. Returns (B, N, T, Dv), contiguous. A row that sees no key is 0. float32,
    float64, and bfloat16: products of pairs, which the weights are rounded for, and sums and softmax in float32.
    """
    if is_decode(q.shape[2], k.shape[2], mask, causal, dropout_p):
        return decode(q, k, v, scale)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    _run(q, k, v, mask, causal, scale, dropout_p, seed, out, None)
    return out


def with_lse(q, k, v, mask=None, causal=False, scale=None, dropout_p=0.0, seed=None):
    """What `forward` returns, and lse (B, N, T), of what is computed in: the logarithms of the sums of the scores'
    exponentials, before dropout; -inf for a row that sees no key."""
    out, lse = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=computed(q.dtype))
    _run(q, k, v, mask, causal, scale, dropout_p, seed, out, lse)
    return out, lse


def is_decode(T, S, mask, causal, dropout_p):
    """Whether T queries over S keys are left to `decode`."""
    return mask is None and T <= FEW and (S == 1 or not causal) and not dropout_p


def _run(q, k, v, mask, causal, scale, dropout_p, seed, out, lse):
    (B, N, T, D), (S, Dv) = q.shape, v.shape[2:]
    if S == 0:
        out.zero_()
        if lse is not None:
            lse.fill_(-torch.inf)
        return
    if B * N * T == 0 or (Dv == 0 and lse is None):
        return
    inputs = _Inputs(q, k, v, mask, dropout_p, seed)
    size, stored = widths(q.dtype)
    entry = kernel("attention", size=size, stored=stored, dropout=bool(dropout_p))
    tasks = _tasks_for(B * N * T * S * (D + Dv) * (1 if causal else 2))
    together = groups.GROUPS
    while together > 1 and B * N * attention.items(size, T, together) < tasks:
        together //= 2
    items = B * N * attention.items(size, T, together)
    tasks = min(tasks, items)
    arguments = (*inputs.places, out.data_ptr(), *inputs.sizes, int(causal), 0 if lse is None else lse.data_ptr())
    need = attention.workspace(size, stored, D, Dv)
    scales = scale_of(scale, D), dropout.rescale(dropout_p)
    _take(entry, (*arguments, *inputs.generator, together), items, tasks, need, computed(q.dtype), scales)


def backward(dout, q, k, v, mask, out, lse, causal=False, scale=None, dropout_p=0.0, seed=None):
    """dq, dk, dv, contiguous, from the gradient dout (B, N, T, Dv) of out and from what `with_lse` took and returned,
    out and lse contiguous."""
    (B, N, T, D), (M, S, Dv) = q.shape, v.shape[1:]
    seen = min(S, T) if causal else S
    if 0 in (B, M, N, seen, T, Dv):
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    dq, dk, dv = (x.new_empty(x.shape, dtype=computed(x.dtype)) for x in (q, k, v))
    dk[:, :, seen:], dv[:, :, seen:] = 0, 0
    chunk = _chunk(seen, B * M)
    chunks = -(-seen // chunk)
    others = dq.new_empty(chunks - 1, *q.shape)
    inputs, dout, (size, stored) = _Inputs(q, k, v, mask, dropout_p, seed), dense_rows(dout), widths(q.dtype)
    entry = kernel("attention_backward", size=size, stored=stored, dropout=bool(dropout_p))
    items = B * M * chunks
    tasks = min(items, _tasks_for(B * N * T * S * (3 * D + 2 * Dv) * (1 if causal else 2)))
    results = (x.data_ptr() for x in (out, lse, dq, dk, dv, others))
    arguments = (*inputs.places, *place(dout), *results, *inputs.sizes, int(causal), *inputs.generator, chunk)
    sizes = size, stored, D, Dv
    layout = attention_backward.together(*sizes), attention_backward.each(*sizes)
    need, scales = attention_backward.workspace(*sizes), (scale_of(scale, D), dropout.rescale(dropout_p))
    _take(entry, (*arguments, *layout), items, tasks, need, dq.dtype, scales)
    for i in range(1, chunks):
        first = chunk * i if causal else 0  # the queries before it see none of the chunk
        dq[:, :, first:] += others[i - 1, :, :, first:]
    return tuple(x.to(q.dtype) for x in (dq, dk, dv))


def _chunk(seen, heads):
    """How many keys are an item, by the sizes alone."""
    chunks = max(1, min(-(-_ITEMS // heads), seen // _CHUNK))
    return -(-seen // (chunks * groups.BLOCK)) * groups.BLOCK


class _Inputs:
    """What the kernels are told of the tensors that they read; it keeps the copies of those that they cannot.

    places: of q, k, v and the mask, and the mask's kind; sizes: N, N / N_kv, T, S, D, Dv; generator: seed, threshold.
    """

    def __init__(self, q, k, v, mask, dropout_p, seed):
        q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        (_, N, T, D), (S, Dv) = q.shape, v.shape[2:]
        kind, mask_place = transposed.NO_MASK, (0, 0, 0, 0)
        if mask is not None:
            kind = transposed.BOOLS if mask.dtype == torch.bool else transposed.FLOATS
            mask = _mask_rows(mask, (*q.shape[:3], S))
            mask_place = place(mask)
        self._read = q, k, v, mask
        self.places = (*place(q), *place(k), *place(v), *mask_place, kind)
        self.sizes = (N, N // k.shape[1], T, S, D, Dv)
        self.generator = (int(seed), dropout.threshold(dropout_p)) if dropout_p else (0, 0)


def _tasks_for(operations):
    """How many tasks so many operations are worth."""
    return max(1, min(torch.get_num_threads(), int(operations / _OPERATIONS_A_TASK)))


def _take(entry, arguments, items, tasks, need, dtype, scales):
    """Has `tasks` threads take the items one after another, each with `need` elements of scratch memory, of which the
    first two are what to scale and to rescale by."""
    work, start = scratch(tasks * need, dtype)
    for i, value in enumerate(scales):
        work[i : tasks * need : need] = value
    taken = array("q", [0])
    own = (start + i * need * work.itemsize for i in range(tasks))
    threads.run(entry, [(*arguments, memory, taken.buffer_info()[0], items) for memory in own])


def _mask_rows(mask, shape):
    """The mask broadcast to `shape`; only what it holds is copied, and only if its last stride is not 1."""
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    own = mask[tuple(slice(0, 1) if step == 0 else slice(None) for step in mask.stride()[:3])]
    return dense_rows(own.expand(*own.shape[:3], shape[3])).expand(shape)
