"""Attention's gradients on the CPU: splits the work over threads, adds up what chunks of keys made apart."""

from functools import partial

import torch

from ..kernels.cpu import attention_backward as kernels
from ..kernels.cpu.compile import kernel
from ..kernels.cpu.groups import BLOCK
from . import threads
from .attention_cpu import Inputs, tasks_for, workspaces
from .rows import dense_rows, place, scale_of

_ITEMS = 16  # so many at least, for as many threads, where chunks are long enough
_CHUNK = 6 * BLOCK  # keys, at least: so that packing the queries for each is a small part


def backward(dout, q, k, v, mask, out, lse, causal=False, scale=None, dropout_p=0.0, seed=None):
    """dq, dk, dv, contiguous, from the gradient dout (B, N, T, Dv) of out and from what `attention_cpu.with_lse` took
    and returned: out (B, N, T, Dv) and lse (B, N, T), contiguous."""
    (B, N, T, D), (M, S, Dv) = q.shape, v.shape[1:]
    seen = min(S, T) if causal else S
    if 0 in (B, M, N, seen, T, Dv):
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dk[:, :, seen:], dv[:, :, seen:] = 0, 0
    chunk = _chunk(seen, B * M)
    chunks = -(-seen // chunk)
    rest = q.new_empty(chunks - 1, *q.shape)
    inputs, dout, size = Inputs(q, k, v, mask, dropout_p, seed), dense_rows(dout), q.element_size()
    entry = kernel("attention_backward", size=size, dropout=bool(dropout_p))
    items = B * M * chunks
    tasks = min(items, tasks_for(B * N * T * S * (3 * D + 2 * Dv) * (1 if causal else 2)))
    results = (x.data_ptr() for x in (out, lse, dq, dk, dv, rest))
    arguments = (*inputs.places, *place(dout), *results, *inputs.sizes, int(causal), *inputs.generator, chunk)
    layout, need = (kernels.together(size, D, Dv), kernels.each(size, D, Dv)), kernels.workspace(size, D, Dv)
    start = workspaces(tasks, need, q.dtype, scale_of(scale, D), dropout_p)
    own = [(start + i * need * size, i, tasks, items) for i in range(tasks)]
    threads.run([partial(entry, *arguments, *layout, *each) for each in own])
    for i in range(1, chunks):
        first = chunk * i if causal else 0  # the queries before it see none of the chunk
        dq[:, :, first:] += rest[i - 1, :, :, first:]
    return dq, dk, dv


def _chunk(seen, heads):
    """How many keys are an item, by the sizes alone."""
    chunks = max(1, min(-(-_ITEMS // heads), seen // _CHUNK))
    return -(-seen // (chunks * BLOCK)) * BLOCK
