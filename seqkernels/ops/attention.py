"""`seqkernels::attention`: exact attention as one operator. Its gradient is in `attention_gradient`.

lse (B, N, T), float32, or float64 with such inputs, is the logarithm of the sums of the scores' exponentials, which the
gradient needs. Without save it is empty on a CPU, where few queries are decoded then; the gradient makes it anew.
"""

import torch

from .. import _backends, _check, dropout
from . import attention_gradient, autocast
from .drivers import driver

_LIB = torch.library.Library("seqkernels", "FRAGMENT")
_LIB.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float? scale,"
    " float dropout_p=0.0, Tensor? seed=None, bool save=True) -> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

LARGEST_HEAD = 256  # of query or value, on a GPU: a program keeps a block of them

_last_decode = None


def direct(query, key, value, mask, causal, scale, dropout_p=0.0, seed=None):
    """The CPU's driver, past the dispatcher. The arguments are known to be right, plain, and need no gradient."""
    global _last_decode
    run = driver("attention", query.device)
    out = run.forward(query, key, value, mask, causal, scale, dropout_p, seed)
    if out.numel() and key.shape[2] and run.is_decode(query.shape[2], key.shape[2], mask, causal, dropout_p):
        _last_decode = run.remembered(query, key, value)
    return out


def again(query, key, value, scale, grouped):
    """What `direct` returns, unmasked, where the call is a decode like the last one, else None."""
    return None if _last_decode is None else _last_decode(query, key, value, scale, grouped)


def run(query, key, value, mask, causal, scale, dropout_p=0.0):
    """What the operator's kernels make of arguments that they serve; the operator itself is what compilers see."""
    seed = dropout.draw_seed(query.device) if dropout_p else None
    given = query, key, value, mask, causal, scale, dropout_p, seed
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if plain(query, key, value, mask):
        _check.stored(("query", query), ("key", key), ("value", value), ("attn_mask", mask))
        return attention_gradient.recorded(*given) if save else direct(*given)
    return torch.ops.seqkernels.attention(*given, save)[0]


def plain(query, key, value, mask):
    """Whether these are what `direct` and `attention_gradient.recorded` take."""
    if not (_check.plain_thread() and _check.plain(query.dtype, query, key, value)):
        return False
    return mask is None or _check.plain(mask.dtype, mask)


def kernel_reason(device, head_size, needs_gradient=False, mask=None):
    """Why no kernel takes heads of this size, or the mask's gradient, on this device, or None."""
    if needs_gradient and mask is not None and mask.requires_grad:
        return "attn_mask needs a gradient"
    if _backends.backend(device) == "gpu" and head_size > LARGEST_HEAD:
        return f"a head has size {head_size}: the kernels go up to {LARGEST_HEAD}"
    return None


def check(query, key, value, mask, dropout_p=0.0, seed=None):
    """Raises unless query (B, N, T, D), key (B, M, S, D), value (B, M, S, E), N a multiple of M, mask and seed fit."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4:
            raise RuntimeError(f"{name} must have 4 dimensions, got {x.dim()}")
        if x.dtype != query.dtype or x.device != query.device:
            raise RuntimeError(
                f"Expected query, key, and value to have the same dtype and device, but got query {query.dtype} on"
                f" {query.device} and {name} {x.dtype} on {x.device}"
            )
    (B, N, T, D), (M, S) = query.shape, key.shape[1:3]
    if key.shape != (B, M, S, D) or value.shape[:3] != (B, M, S) or M == 0 or N % M:
        shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
        raise RuntimeError(f"query, key and value sizes do not fit together, got {shapes}")
    if mask is not None:
        if mask.dtype not in (torch.bool, query.dtype):
            raise RuntimeError(f"Expected attn_mask dtype to be bool or {query.dtype}, got {mask.dtype}")
        if mask.device != query.device or not mask_fits(mask.shape, (B, N, T, S)):
            raise RuntimeError(
                f"attn_mask {list(mask.shape)} on {mask.device} does not fit {[B, N, T, S]} on {query.device}"
            )
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be from 0 to 1, got {dropout_p}")
    if dropout_p and (seed is None or (seed.shape, seed.dtype, seed.device) != ((1,), torch.int64, query.device)):
        given = None if seed is None else f"{seed.dtype} {list(seed.shape)} on {seed.device}"
        raise RuntimeError(f"seed must be int64 [1] on {query.device}, got {given}")


def mask_fits(shape, full):
    """Whether a mask of this shape broadcasts to (B, N, T, S)."""
    return len(shape) <= len(full) and all(m in (1, f) for m, f in zip(shape[::-1], full[::-1]))


def _forward_kernel(query, key, value, mask, causal, scale, dropout_p=0.0, seed=None, save=True):
    check(query, key, value, mask, dropout_p, seed)
    named = ("query", query), ("key", key), ("value", value), ("attn_mask", mask)
    reasons = [_check.tensor_reason(name, x) for name, x in named[:3]]
    reasons.append(kernel_reason(query.device, max(query.shape[3], value.shape[3])))
    for reason in filter(None, reasons):
        raise NotImplementedError(reason)
    _check.stored(*named)
    run, given = driver("attention", query.device), (query, key, value, mask, causal, scale, dropout_p, seed)
    if _backends.backend(query.device) == "gpu":
        return run.forward(*given)
    if save:
        return run.with_lse(*given)
    return run.forward(*given), query.new_empty(0, dtype=attention_gradient.lse_dtype(query))


def _forward_fake(query, key, value, mask, causal, scale, dropout_p=0.0, seed=None, save=True):
    check(query, key, value, mask, dropout_p, seed)
    rows = query.shape[:3] if save or _backends.backend(query.device) == "gpu" else (0,)
    lse = query.new_empty(rows, dtype=attention_gradient.lse_dtype(query))
    return query.new_empty((*query.shape[:3], value.shape[3])), lse


for _key in ("CPU", "CUDA"):
    _LIB.impl("attention", _forward_kernel, _key)
torch.library.register_fake("seqkernels::attention", _forward_fake, lib=_LIB)
torch.library.register_autograd(
    "seqkernels::attention", attention_gradient.run, setup_context=attention_gradient.save, lib=_LIB
)
autocast.register(_LIB, "attention")
