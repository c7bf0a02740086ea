"""`seqkernels::attention_backward`, the gradient of `seqkernels::attention`, and the gradient of that.

The second gradient, and that of a mask, are the reference's, with the T x S matrix written out.
"""

import torch

from .. import _backends, _check, reference
from . import autocast
from .drivers import driver

_LIB = torch.library.Library("seqkernels", "FRAGMENT")
_LIB.define(
    "attention_backward(Tensor dout, Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor out, Tensor lse,"
    " bool causal, float? scale, float dropout_p, Tensor? seed) -> (Tensor dquery, Tensor dkey, Tensor dvalue)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def save(ctx, inputs, output):
    """What the operator's gradient needs."""
    query, key, value, mask, ctx.causal, ctx.scale, ctx.dropout_p, seed, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, mask, seed, *output)


def run(ctx, dout, dlse):
    """The gradients of the operator's arguments."""
    if dout is None:
        return (None,) * 9
    query, key, value, mask, seed, out, lse = ctx.saved_tensors
    options = ctx.causal, ctx.scale, ctx.dropout_p, seed
    gradients, dmask = (None, None, None), None
    if any(ctx.needs_input_grad[:3]):
        gradients = torch.ops.seqkernels.attention_backward(dout, query, key, value, mask, out, lse, *options)
    if ctx.needs_input_grad[3]:
        dscores = reference.attention_gradients(dout, query, key, value, mask, *options)[3]
        dmask = dscores.sum_to_size(mask.shape)
    return *gradients, dmask, None, None, None, None, None


def recorded(query, key, value, mask, causal, scale, dropout_p, seed):
    """out of plain tensors on a CPU, by the operator's implementation as a node of autograd; none for the mask.

    The operator's own node takes tens of microseconds more, a good part of a small training step.
    """
    return _Recorded.apply(query, key, value, mask, causal, scale, dropout_p, seed)


class _Recorded(torch.autograd.Function):
    """`seqkernels::attention` and its gradient as a node of autograd."""

    @staticmethod
    def forward(ctx, query, key, value, mask, causal, scale, dropout_p, seed):
        given = query, key, value, mask, causal, scale, dropout_p, seed
        out, lse = driver("attention", query.device).with_lse(*given)
        ctx.options = causal, scale, dropout_p
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(query, key, value, mask, seed, out, lse)
        return out

    @staticmethod
    def backward(ctx, dout):
        if dout is None:
            return (None,) * 8
        query, key, value, mask, seed, out, lse = ctx.saved_tensors
        # With create_graph the gradient is recorded in its turn, and gradients may be batched: the operator knows how.
        alone = not torch.is_grad_enabled() and _check.bare_thread() and _check.plain(query.dtype, dout)
        run = _kernel if alone else torch.ops.seqkernels.attention_backward
        return *run(dout, query, key, value, mask, out, lse, *ctx.options, seed), None, None, None, None, None


def lse_dtype(query):
    """The dtype of lse."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _kernel(dout, query, key, value, mask, out, lse, causal, scale, dropout_p, seed):
    _check.matches("dout", dout, (*query.shape[:3], value.shape[3]), query)
    _check.matches("out", out, dout.shape, query)
    rows, dtype, options = query.shape[:3], lse_dtype(query), (causal, scale, dropout_p, seed)
    if lse.shape == (0,) and _backends.backend(query.device) == "cpu":
        out, lse = driver("attention", query.device).with_lse(query, key, value, mask, *options)
    if (lse.shape, lse.dtype, lse.device) != (rows, dtype, query.device):
        raise RuntimeError(f"lse must be {dtype} {[*rows]} on {query.device}, got {lse.dtype} {[*lse.shape]}")
    given = dout, query, key, value, mask, out.contiguous(), lse.contiguous(), *options
    return driver("attention", query.device).backward(*given)


def _fake(dout, query, key, value, mask, out, lse, causal, scale, dropout_p, seed):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _save_again(ctx, inputs, output):
    dout, query, key, value, mask, _, _, *ctx.options, seed = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dout, query, key, value, mask, seed)


def _run_again(ctx, *seeds):
    """Gradients of dout, query, key, value and mask; out and lse depend on these and have none of their own."""
    *tensors, seed = ctx.saved_tensors
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [t if t is None else t.view_as(t) for t in tensors]
        asked = [a if a.requires_grad else a.requires_grad_() for a, n in zip(aliases, ctx.needs_input_grad) if n]
        first = reference.attention_gradients(*aliases, *ctx.options, seed)
        pairs = [(f, s) for f, s in zip(first, seeds) if s is not None]
        outputs, given = zip(*pairs) if pairs else ((first[0].sum() * 0,), (None,))
        grads = iter(torch.autograd.grad(outputs, asked, given, create_graph=again, allow_unused=True))
    return (*(next(grads) if n else None for n in ctx.needs_input_grad[:5]), *(None,) * 6)


for _key in ("CPU", "CUDA"):
    _LIB.impl("attention_backward", _kernel, _key)
torch.library.register_fake("seqkernels::attention_backward", _fake, lib=_LIB)
torch.library.register_autograd("seqkernels::attention_backward", _run_again, setup_context=_save_again, lib=_LIB)
autocast.register(_LIB, "attention_backward", casts=False)
