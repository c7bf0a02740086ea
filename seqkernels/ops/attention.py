"""`seqkernels::attention`: exact attention as one operator.

Its gradient is that of the reference, recomputed: right, twice differentiable, and not fast. Calls that need one go to
torch's own attention before they come here (`seqkernels.functional`).
"""

import importlib
from functools import cache

import torch

from .. import _check, reference

_LIB = torch.library.Library("seqkernels", "FRAGMENT")
_LIB.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float? scale) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


_last_decode = None


@cache
def _driver():
    return importlib.import_module(".attention_cpu", __package__)


def direct(query, key, value, mask, causal, scale):
    """The driver, past the dispatcher. The arguments are known to be right, plain, and without a gradient to record."""
    global _last_decode
    out = _driver().forward(query, key, value, mask, causal, scale)
    if out.numel() and key.shape[2] and _driver().is_decode(query.shape[2], key.shape[2], mask, causal):
        _last_decode = _driver().remembered(query, key, value)
    return out


def again(query, key, value, scale, grouped):
    """What `direct` returns, unmasked, where the call is a decode like the last one, else None."""
    return None if _last_decode is None else _last_decode(query, key, value, scale, grouped)


def through_operator(query, key, value, mask, causal, scale):
    """The operator, which compilers and tracers see."""
    return torch.ops.seqkernels.attention(query, key, value, mask, causal, scale)


def check(query, key, value, mask):
    """Raises unless query (B, N, T, D), key (B, M, S, D), value (B, M, S, E), N a multiple of M, and mask fit."""
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


def mask_fits(shape, full):
    """Whether a mask of this shape broadcasts to (B, N, T, S)."""
    return len(shape) <= len(full) and all(m in (1, f) for m, f in zip(shape[::-1], full[::-1]))


def _forward_cpu(query, key, value, mask, causal, scale):
    check(query, key, value, mask)
    reason = _driver().supports(query, key, value, mask)
    if reason is not None:
        raise NotImplementedError(reason)
    _check.stored(("query", query), ("key", key), ("value", value), ("attn_mask", mask))
    return _driver().forward(query, key, value, mask, causal, scale)


def _forward_fake(query, key, value, mask, causal, scale):
    check(query, key, value, mask)
    return query.new_empty((*query.shape[:3], value.shape[3]))


def _save_for_backward(ctx, inputs, output):
    query, key, value, mask, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, mask)


def _backward(ctx, dout):
    again = torch.is_grad_enabled()
    tensors = ctx.saved_tensors
    with torch.enable_grad():
        aliases = [t if t is None else t.view_as(t) for t in tensors]
        asked = [a if a.requires_grad else a.requires_grad_() for a, n in zip(aliases, ctx.needs_input_grad) if n]
        query, key, value, mask = aliases
        out = reference.scaled_dot_product_attention(
            query, key, value, mask, is_causal=ctx.causal, scale=ctx.scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        grads = iter(torch.autograd.grad(out, asked, dout, create_graph=again))
    return (*(next(grads) if n else None for n in ctx.needs_input_grad[:4]), None, None)


_LIB.impl("attention", _forward_cpu, "CPU")
torch.library.register_fake("seqkernels::attention", _forward_fake, lib=_LIB)
torch.library.register_autograd("seqkernels::attention", _backward, setup_context=_save_for_backward, lib=_LIB)
