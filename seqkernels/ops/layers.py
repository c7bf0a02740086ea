"""The layers of a recurrent network: one after another, or as a wavefront."""

import torch

from .. import _backends, _check
from .drivers import driver
from .packing import per_layer
from .reference_gradients import differentiable, recorded_gradients
from .scan import needs_gradient, plain_call, through_operator
from .scan_kernels import readable


def in_turn(scan, cell, x, h_0, c_0, weights, batch_first, L, dropout=0.0, recompute=False):
    """(y, h_n, c_n) of L layers, one after another, by scan(cell, x, h_0, c_0, weights, batch_first,
    recompute) of each.

    x: (T, B, I) or (B, T, I). h_0, h_n: (L*D, B, H); so are c_0 and c_n, or None. weights: those of all layers.
    dropout: how probable it is for an element to be dropped between two layers.
    """
    D, ends = len(h_0) // L, []
    for i, own in enumerate(per_layer(weights, L)):
        if i and dropout:
            x = torch.dropout(x, dropout, True)
        at = slice(i * D, i * D + D)
        c = None if c_0 is None else c_0[at]
        x, *end = scan(cell, x, h_0[at], c, own, batch_first, recompute=recompute)
        ends.append(end)
    return x, torch.cat([h for h, _ in ends]), None if c_0 is None else torch.cat([c for _, c in ends])


def as_wavefront(cell, x, h_0, c_0, weights, batch_first, L):
    """The same, of a plain call on a GPU whose sizes are for it; else None. Trusts the arguments' sizes and dtypes."""
    tensors = [t for t in (x, h_0, c_0, *weights) if t is not None]
    if _backends.backend(x.device) != "gpu" or not plain_call(*tensors):
        return None
    run = driver("wavefront", x.device)
    steps = run.chunk(cell, x, h_0, L, batch_first)
    if not steps:
        return None
    _check.stored(("x", x), ("h_0", h_0), ("c_0", c_0), *((f"weights[{i}]", w) for i, w in enumerate(weights)))
    if needs_gradient(*tensors):
        return _Wavefront.apply(cell, batch_first, steps, x, h_0, c_0, *weights)
    return run.forward(cell, readable(x), h_0, c_0, weights, batch_first, False, steps)[:3]


class _Wavefront(torch.autograd.Function):
    """The layers and their gradient as a node of autograd."""

    @staticmethod
    def forward(ctx, cell, batch_first, steps, x, h_0, c_0, *weights):
        run = driver("wavefront", x.device).forward
        *outputs, states, gates = run(cell, readable(x), h_0, c_0, weights, batch_first, True, steps)
        ctx.cell, ctx.batch_first, ctx.steps = cell, batch_first, steps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_0, c_0, *weights, *states, *gates)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *upstream):
        x, h_0, c_0, *rest = ctx.saved_tensors
        L, needs = len(h_0), (ctx.needs_input_grad[3], any(ctx.needs_input_grad[6:]))
        weights, states, gates = rest[: -2 * L], rest[-2 * L : -L], rest[-L:]
        if all(t is None for t in upstream):
            gradients = [None] * (3 + len(weights))
        elif torch.is_grad_enabled():  # with create_graph
            gradients = _by_the_operator(ctx.cell, upstream, x, h_0, c_0, weights, ctx.batch_first)
        else:
            given = (readable(x), h_0, c_0, weights, states, gates, ctx.batch_first, *needs, ctx.steps)
            *gradients, dweights = driver("wavefront", x.device).backward(ctx.cell, *upstream, *given)
            gradients += dweights or [None] * len(weights)
        return None, None, None, *gradients


def _by_the_operator(cell, upstream, x, h_0, c_0, weights, batch_first):
    """The gradients of x, h_0, c_0 and the weights, recorded in their turn, by the operator of one layer, which knows
    how. It runs all layers again, since the inputs of those above have to lead back to what they were made of."""
    primals = differentiable(x, h_0, c_0, *weights)
    x, h_0, c_0, *weights = primals
    outputs = in_turn(through_operator, cell, x, h_0, c_0, weights, batch_first, len(h_0))
    return recorded_gradients(outputs, upstream, primals)
