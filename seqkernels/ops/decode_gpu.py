"""Attention of few queries on a GPU: allocates, splits the keys, launches. Trusts its arguments."""

import torch

from ..kernels.gpu.attention_configs import padded
from ..kernels.gpu.attention_decode import attention_combine, attention_decode
from ..kernels.gpu.decode_plan import combined_at_once, plan_for
from .launch_gpu import attention_precision, operands, processors
from .rows import scale_of


def forward(q, k, v, mask=None, causal=False, scale=None, plan=None):
    """out and lse; arguments and results as `attention_gpu.forward`, for tensors that `decode_plan.is_decode` says.

    plan: the `decode_plan.Plan` to run with, or None for the one that suits the sizes and the device.
    """
    (B, N, T, D), (_, M, S, E) = q.shape, v.shape
    out, lse = q.new_empty(B, N, T, E), q.new_empty(B, N, T, dtype=torch.float32)
    if 0 in lse.shape:
        return out, lse
    if causal:
        S = min(S, T)  # no query sees a later key
    if plan is None:
        plan = plan_for(N // M * T, max(D, E), q.element_size(), B * M, S, processors(q.device))
    splits, BLOCK_E = plan.splits(S), padded(E)
    records = None, None
    if splits > 1:
        records = lse.new_empty(B, N, T, splits, E), lse.new_empty(B, N, T, splits, 2)
    with torch.cuda.device_of(q):
        attention_decode[(B * M * splits,)](
            *operands(q, k, v, mask), out, lse, *records, M, N // M, T, S, plan.span, splits, float(scale_of(scale, D)),
            D=D, E=E, BLOCK_D=padded(D), BLOCK_E=BLOCK_E, CAUSAL=causal, ROWS=plan.rows, KEYS=plan.keys,
            STAGES=plan.stages, PRECISION=attention_precision(), num_warps=plan.warps, num_stages=plan.stages,
        )  # fmt: skip
        if splits > 1:
            attention_combine[(B * N * T,)](
                *records, out, lse, splits, E=E, BLOCK_E=BLOCK_E, SPLITS=combined_at_once(BLOCK_E)
            )
    return out, lse
