"""Gradients by the reference: the autograd rule of `seqkernels::scan_backward`, what it saves and the gradient of its
results; and what the operator returns where it gets a batch of upstream gradients."""

import torch

from .. import reference
from .ragged import past


def save(ctx, inputs, output):
    cell, dy, dh_n, dc_n, x, h_0, c_0, weights, _, _, batch_first, needs_dx, needs_dw, *ragged = inputs
    lengths, reset, reset_h, reset_c, batch_sizes = ragged
    ctx.cell, ctx.batch_first, ctx.needs = cell, batch_first, (needs_dx, needs_dw)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lengths, reset, batch_sizes, dy, dh_n, dc_n, x, h_0, c_0, reset_h, reset_c, *weights)


def run(ctx, ddx, ddh_0, ddc_0, ddweights, *ddreset):
    """Gradient of the gradient, by differentiating the reference twice. states and gates depend on the other arguments
    and carry no gradient of their own: the recomputation accounts for all of it."""
    needs_dx, needs_dw = ctx.needs
    *ragged, dy, dh_n, dc_n, x, h_0, c_0, reset_h, reset_c = ctx.saved_tensors[:11]
    primals = x, h_0, c_0, reset_h, reset_c, *ctx.saved_tensors[11:]
    upstream = [ddx if needs_dx else None, ddh_0, ddc_0, *ddreset, *(ddweights if needs_dw else [])]
    upstream += [None] * (len(primals) - len(upstream))
    with torch.enable_grad():
        seeds, primals = differentiable(dy, dh_n, dc_n), differentiable(*primals)
        first = recorded_gradients(_outputs(ctx.cell, ctx.batch_first, *ragged, *primals), seeds, primals)
    chosen = [(f, u) for f, u in zip(first, upstream) if f is not None and u is not None and f.requires_grad]
    wanted = [t for t in (*seeds, *primals) if t is not None]
    grads = [None] * len(wanted)
    if chosen:
        grads = torch.autograd.grad(
            [f for f, _ in chosen],
            wanted,
            [u for _, u in chosen],
            allow_unused=True,
            create_graph=torch.is_grad_enabled(),
        )
    grads = iter(grads)
    gradients = [None if t is None else next(grads) for t in (*seeds, *primals)]
    ddy, ddh_n, ddc_n, gx, gh_0, gc_0, greset_h, greset_c, *gweights = gradients
    gradients = (None, ddy, ddh_n, ddc_n, gx, gh_0, gc_0, gweights, *[None] * 7, greset_h, greset_c, None)
    return gradients[: len(ctx.needs_input_grad)]  # one for each argument up to the last that was given


def of_batch(
    cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw, *ragged
):  # fmt: skip
    """What `seqkernels::scan_backward` returns, dy, dh_n and dc_n being a batch of its arguments, as vmap has them."""
    lengths, reset, reset_h, reset_c, batch_sizes = ragged or [None] * 5
    primals = (None if t is None else t.detach() for t in (x, h_0, c_0, reset_h, reset_c, *weights))
    with torch.enable_grad():
        primals = differentiable(*primals)
        outputs = _outputs(cell, batch_first, lengths, reset, batch_sizes, *primals)
        dx, dh_0, dc_0, *dresets = recorded_gradients(outputs, (dy, dh_n, dc_n), primals)
    return dx, dh_0, dc_0, dresets[2:], *dresets[:2]


def are_batched(*tensors):
    """Whether any of the tensors, None among them, is a batch, as vmap has it in `torch.autograd.grad`."""
    return any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors)


def _outputs(cell, batch_first, lengths, reset, batch_sizes, x, h_0, c_0, reset_h, reset_c, *weights):
    """The reference's (y, h_n, c_n)."""
    if batch_sizes is not None:
        return _packed(cell, x, h_0, c_0, weights, batch_sizes)
    reset_state = None if reset_h is None else (reset_h, reset_c)
    return reference.scan(cell, x, h_0, c_0, weights, batch_first, lengths, reset, reset_state)[:3]


def _packed(cell, x, h_0, c_0, weights, batch_sizes):
    """The reference's (y, h_n, c_n) of packed x."""
    lengths = (batch_sizes[:, None] > torch.arange(h_0.shape[1])).sum(0)
    live = ~past(lengths, len(batch_sizes))
    padded = x.new_zeros(*live.shape, x.shape[1]).index_put(live.nonzero(as_tuple=True), x)
    y, h_n, c_n, *_ = reference.scan(cell, padded, h_0, c_0, weights, lengths=lengths)
    return y[live], h_n, c_n


def recorded_gradients(outputs, seeds, primals):
    """The primals' gradients, themselves recorded; each of outputs, seeds and primals may be None."""
    pairs = [(o, s) for o, s in zip(outputs, seeds) if s is not None]
    gradients = torch.autograd.grad(
        [o for o, _ in pairs],
        [p for p in primals if p is not None],
        [s for _, s in pairs],
        create_graph=True,
        materialize_grads=True,
    )
    gradients = iter(gradients)
    return [None if p is None else next(gradients) for p in primals]


def differentiable(*tensors):
    """Aliases that gradients can be asked for, still tied to the graph that the tensors came from."""
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    return [a if a is None or a.requires_grad else a.requires_grad_() for a in aliases]
