"""Attention on a GPU: allocates, launches. Trusts its arguments.

float32, float16 and bfloat16, sums in float32. On CPU tensors the kernels run in Triton's interpreter, where
TRITON_INTERPRET was set before Triton was imported.
"""

import torch
import triton

from ..kernels import dropout
from ..kernels.gpu.attention_backward import attention_backward_keys, attention_backward_queries, attention_delta
from ..kernels.gpu.attention_configs import config_for, padded
from ..kernels.gpu.attention_forward import attention_forward
from ..kernels.gpu.decode_plan import is_decode
from . import decode_gpu
from .launch_gpu import attention_precision, capability, operand, operands
from .rows import dense_rows, scale_of


def forward(
    q, k, v, mask=None, causal=False, scale=None, dropout_p=0.0, seed=None, config=None, descriptors=None
):  # fmt: skip
    """softmax(scale q k^T + mask) v, as torch's scaled_dot_product_attention has it, and the logarithm of its sums.

    q (B, N, T, D), k (B, M, S, D), v (B, M, S, E), N a multiple of M; mask None or broadcastable to (B, N, T, S), bool
    (False hides a key) or of q's dtype (added); causal hides key s from query t < s; scale None is 1 / sqrt(D);
    dropout_p the probability of a weight to be dropped, by the generator of `kernels.dropout` under seed (1,), int64.
    Returns out (B, N, T, E), contiguous, and lse (B, N, T), float32. A row that sees no key is 0, and its lse -inf.
    config: an `attention_configs.Config` to run with, or None for the one that suits the sizes and the device: with few
    queries and no dropout, that is decode. descriptors: whether to read k and v through tensor descriptors, or None for
    the rule (`launch_gpu.operand`); the bits are the same.
    """
    (B, N, T, D), E = q.shape, v.shape[3]
    if config is None and not dropout_p and is_decode(T, N // k.shape[1]):
        return decode_gpu.forward(q, k, v, mask, causal, scale)
    out, lse = q.new_empty(B, N, T, E), q.new_empty(B, N, T, dtype=torch.float32)
    config = _config("forward", q, E, mask, dropout_p) if config is None else config
    blocks = None, (config.keys, padded(D)), (config.keys, padded(E))
    arguments = (*operands(q, k, v, mask, blocks, descriptors), out, lse, *_dropout(dropout_p, seed))
    programs = B * N * triton.cdiv(T, config.queries)
    _launch(attention_forward, programs, arguments, q, k, v, causal, scale, config)
    return out, lse


def backward(
    dout, q, k, v, mask, out, lse, causal=False, scale=None, dropout_p=0.0, seed=None, keys=None, queries=None,
    descriptors=None,
):  # fmt: skip
    """dq, dk, dv, contiguous, from the gradient dout (B, N, T, E) of out and from what `forward` took and returned.

    keys, queries: the Configs to run the kernels of dk and dv, and of dq, with, or None. descriptors: as `forward`, of
    what each kernel's loop reads, q and dout or k and v.
    """
    (B, N, T, D), (M, S, E) = q.shape, v.shape[1:]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dout, delta = dense_rows(dout), torch.empty_like(lse)
    rows = 32
    programs = B * N * triton.cdiv(T, rows)
    if programs:
        with torch.cuda.device_of(q):
            attention_delta[(programs,)](
                out, delta, dout, *dout.stride()[:3], N, T, E=E, BLOCK_E=padded(E), QUERIES=rows
            )
    dropped = _dropout(dropout_p, seed)
    keys = _config("keys", q, E, mask, dropout_p) if keys is None else keys
    read = operands(q, k, v, mask, ((keys.queries, padded(D)), None, None), descriptors)
    arguments = (*read, *operand(dout, (keys.queries, padded(E)), descriptors), lse, delta, dk, dv, *dropped)
    programs = B * M * triton.cdiv(S, keys.keys)
    _launch(attention_backward_keys, programs, arguments, q, k, v, causal, scale, keys)
    queries = _config("queries", q, E, mask, dropout_p) if queries is None else queries
    read = operands(q, k, v, mask, (None, (queries.keys, padded(D)), (queries.keys, padded(E))), descriptors)
    arguments = (*read, *operand(dout), lse, delta, dq, *dropped)
    programs = B * N * triton.cdiv(T, queries.queries)
    _launch(attention_backward_queries, programs, arguments, q, k, v, causal, scale, queries)
    return dq, dk, dv


def _dropout(p, seed):
    """The kernels' arguments for dropout."""
    return (seed, dropout.threshold(p), dropout.rescale(p)) if p else (None, 0, 1.0)


def _launch(kernel, programs, arguments, q, k, v, causal, scale, config):
    (_, N, T, D), (_, M, S, E) = q.shape, v.shape
    if programs == 0:
        return
    with torch.cuda.device_of(q):
        kernel[(programs,)](
            *arguments, N, N // M, T, S, float(scale_of(scale, D)),
            D=D, E=E, BLOCK_D=padded(D), BLOCK_E=padded(E), CAUSAL=causal, QUERIES=config.queries, KEYS=config.keys,
            PRECISION=attention_precision(), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip


def _config(operation, q, E, mask, dropout_p):
    option = "dropped" if dropout_p else None if mask is None else "masked"
    return config_for(operation, max(q.shape[3], E), q.element_size(), capability(q.device), option)
