"""`seqkernels::scan` and `seqkernels::scan_backward`: one layer of a recurrent network as one operator, and its
gradient.

Shapes as in `seqkernels.reference.scan`; with batch_sizes x is packed (ragged.py). An operator's outputs are fresh
tensors, never views of each other or of an input.

What the gradient needs: `states` and `gates` with save, all of it. With recompute as well, only what cannot be made
from the rest without a recurrence: the states. What is not kept is empty, and `seqkernels::scan_backward` makes it
anew: the gates by products over many steps at once, states that it is not given by the forward again.
"""

import torch

from .. import _check
from . import autocast, reference_gradients
from .drivers import driver
from .ragged import Ragged
from .scan_kernels import backward_fake, backward_kernel, forward, forward_fake, forward_kernel, trusted_backward

_LIB = torch.library.Library("seqkernels", "FRAGMENT")
_RAGGED = (  # ops/ragged.py
    "Tensor? lengths=None, Tensor? reset=None, Tensor? reset_h=None, Tensor? reset_c=None, Tensor? batch_sizes=None"
)
_LIB.define(
    "scan(str cell, Tensor x, Tensor h_0, Tensor? c_0, Tensor[] weights, bool batch_first, bool save,"
    f" {_RAGGED}, *, bool recompute=False) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor states, Tensor gates)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIB.define(
    "scan_backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h_0, Tensor? c_0,"
    " Tensor[] weights, Tensor states, Tensor gates, bool batch_first, bool needs_dx, bool needs_dw,"
    f" {_RAGGED}) -> (Tensor dx, Tensor dh_0, Tensor dc_0, Tensor[] dweights, Tensor dreset_h, Tensor dreset_c)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def through_operator(cell, x, h_0, c_0, weights, batch_first, *ragged, recompute=False):
    """(y, h_n, c_n) by the operator, which compilers, tracers and modes see.

    A plain call that records a gradient is `recorded`; ragged ones are not plain.
    """
    tensors = [t for t in (x, h_0, c_0, *weights, *ragged) if t is not None]
    save = needs_gradient(*tensors)
    if save and not ragged and plain_call(*tensors):
        return recorded(cell, x, h_0, c_0, weights, batch_first, recompute)
    return torch.ops.seqkernels.scan(cell, x, h_0, c_0, weights, batch_first, save, *ragged, recompute=recompute)[:3]


def with_states(cell, x, h_0, c_0, weights, batch_first, *ragged):
    """(y, h_n, c_n, c, gates) of `functional.scan` without a gradient, from what the operator saves for one."""
    y, h_n, c_n, *saved = torch.ops.seqkernels.scan(cell, x, h_0, c_0, weights, batch_first, True, *ragged)
    c_n = None if c_0 is None else c_n
    all_steps = driver("scan", x.device).all_steps
    return y, h_n, c_n, *all_steps(cell, x, h_0, c_0, c_n, *saved, batch_first, Ragged(*ragged))


def needs_gradient(*tensors):
    """Whether a gradient is to be recorded for any of the tensors, None among them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def plain_call(x, *tensors):
    """Whether a call with these tensors runs at once and as written, all of x's dtype and kind of device."""
    return _check.bare_thread() and _check.plain(x.dtype, x, *tensors, kind="CUDA" if x.is_cuda else "CPU")


def recorded(cell, x, h_0, c_0, weights, batch_first, recompute=False):
    """(y, h_n, c_n) of plain tensors, by the operator's implementation as a node of autograd.

    Lists of tensors in an operator's autograd cost about 400 microseconds a training step.
    """
    return _Recorded.apply(cell, batch_first, recompute, None, None, None, x, h_0, c_0, *weights)


def recorded_step(cell, x, h, c, weights):
    """(h', c') by `recorded`, from x (B, I), h and c (B, H): without the views that a scan of one step takes, each a
    node of autograd."""
    return _Recorded.apply(cell, False, False, None, None, None, x, h, c, *weights)


def recorded_by(plan, shared, x, h_0, c_0, weights):
    """(y, h_n, c_n) as `recorded`, or `recorded_step` where x is (B, I) and y h_n, the forward being the plan's
    (training_plan_cpu.py). shared: the weights' SharedWeights, or None."""
    token = None if shared is None else shared.token
    results = _Recorded.apply(plan.cell, plan.batch_first, False, plan, shared, token, x, h_0, c_0, *weights)
    return results if len(results) == 3 else (results[0], *results)


def step_through_operator(cell, x, h, c, weights):
    """(h', c') by the operator, from x (B, I), h and c (B, H)."""
    if needs_gradient(x, h, c, *weights) and plain_call(*(t for t in (x, h, c, *weights) if t is not None)):
        return recorded_step(cell, x, h, c, weights)
    c_0 = None if c is None else c.unsqueeze(0)
    _, h_n, c_n = through_operator(cell, x.unsqueeze(0), h.unsqueeze(0), c_0, weights, False)
    return h_n.squeeze(0), None if c is None else c_n.squeeze(0)


def _save_for_backward(ctx, inputs, keyword_only_inputs, output):
    cell, x, h_0, c_0, weights, batch_first, _, *ragged = inputs
    _, _, _, states, gates = output
    ctx.cell, ctx.batch_first, ctx.per_layer = cell, batch_first, len(weights)
    ctx.mark_non_differentiable(states, gates)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h_0, c_0, *weights, states, gates, *ragged)


def _backward(ctx, dy, dh_n, dc_n, dstates, dgates):
    needs = ctx.needs_input_grad[1], any(ctx.needs_input_grad[4])
    dx, dh_0, dc_0, dweights, *dreset = _gradients(ctx, dy, dh_n, dc_n, *needs, torch.ops.seqkernels.scan_backward)
    gradients = (None, dx, dh_0, dc_0, dweights, None, None, None, None, *dreset, None)
    return gradients[: len(ctx.needs_input_grad)]  # one for each argument up to the last that was given


def _gradients(ctx, dy, dh_n, dc_n, needs_dx, needs_dw, run):
    """(dx, dh_0, dc_0, the weights', dreset_h, dreset_c) from what `ctx` saved, by run: the backward operator, or what
    it runs, which has no more of the last two than there are."""
    x, h_0, c_0, *rest = ctx.saved_tensors
    if h_0.dim() == 2:  # of one step
        x, h_0, c_0 = _in_time(x, h_0, c_0)
    weights, (states, gates, *ragged) = rest[: ctx.per_layer], rest[ctx.per_layer :]
    cell, batch_first = ctx.cell, ctx.batch_first
    dc_n = None if c_0 is None else dc_n
    if reference_gradients.are_batched(dy, dh_n, dc_n):
        run = reference_gradients.of_batch
    if dy is None and dh_n is None and dc_n is None:
        return None, None, None, [None] * len(weights), None, None
    dx, dh_0, dc_0, dweights, *dreset = run(
        cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw, *ragged
    )
    dreset = [None if given is None else made for given, made in zip(ragged[2:], dreset)]
    dweights = dweights if needs_dw else [None] * len(weights)
    return dx if needs_dx else None, dh_0, None if c_0 is None else dc_0, dweights, *dreset


class _Recorded(torch.autograd.Function):
    """`seqkernels::scan` and its gradient as a node of autograd; of one step, (h', c'), where x is (B, I)."""

    @staticmethod
    def forward(ctx, cell, batch_first, recompute, plan, shared, _, x, h_0, c_0, *weights):
        ctx.cell, ctx.batch_first, ctx.per_layer, ctx.steps = cell, batch_first, len(weights), x.dim() == 3
        ctx.plan, ctx.shared = plan, shared
        if plan is not None:
            y, h_n, c_n, states, gates = plan.forward(x, h_0, c_0, weights)
        else:
            given = (x, h_0, c_0) if ctx.steps else _in_time(x, h_0, c_0)
            y, h_n, c_n, states, gates = forward(cell, *given, weights, batch_first, True, recompute=recompute)
            if not ctx.steps:  # no views: their owner may write to them
                h_n, c_n = h_n.squeeze_(0), None if c_0 is None else c_n.squeeze_(0)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_0, c_0, *weights, states, gates)
        return (y, h_n, c_n) if ctx.steps else (h_n, c_n)

    @staticmethod
    def backward(ctx, *upstream):
        needs = ctx.needs_input_grad[6], any(ctx.needs_input_grad[9:])
        # With create_graph the gradient is recorded in its turn: the operator knows how.
        records, none_given = torch.is_grad_enabled(), all(d is None for d in upstream)
        if ctx.shared is not None and not ctx.shared.wanted():
            needs = needs[0], False
        elif ctx.shared is not None and not (records or none_given or reference_gradients.are_batched(*upstream)):
            gradients = ctx.plan.backward(ctx.shared, upstream, needs[0], *ctx.saved_tensors)
            return *[None] * 6, *gradients, *[None] * ctx.per_layer
        run = torch.ops.seqkernels.scan_backward if records else trusted_backward
        upstream = upstream if ctx.steps else (None, *_in_time(*upstream))
        dx, dh_0, dc_0, dweights, *_ = _gradients(ctx, *upstream, *needs, run)
        if not ctx.steps:
            dx, dh_0, dc_0 = (t if t is None else t.squeeze(0) for t in (dx, dh_0, dc_0))
        return *[None] * 6, dx, dh_0, dc_0, *dweights


def _in_time(*tensors):
    return [t if t is None else t.unsqueeze(0) for t in tensors]


for _key in ("CPU", "CUDA"):
    _LIB.impl("scan", forward_kernel, _key)
    _LIB.impl("scan_backward", backward_kernel, _key)
torch.library.register_fake("seqkernels::scan", forward_fake, lib=_LIB)
torch.library.register_fake("seqkernels::scan_backward", backward_fake, lib=_LIB)
torch.library.register_autograd("seqkernels::scan", _backward, setup_context=_save_for_backward, lib=_LIB)
torch.library.register_autograd(
    "seqkernels::scan_backward", reference_gradients.run, setup_context=reference_gradients.save, lib=_LIB
)
autocast.register(_LIB, "scan")
autocast.register(_LIB, "scan_backward", casts=False)
