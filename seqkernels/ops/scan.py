"""`seqkernels::scan` and `seqkernels::scan_backward`: one layer of a recurrent network as one operator, and its
gradient.

Shapes as in `seqkernels.reference.scan`. An operator's outputs are fresh tensors, never views of each other or of an
input.
"""

import torch

from .. import _check
from ..kernels.cells import CELLS
from . import double_backward
from .drivers import driver

_LIB = torch.library.Library("seqkernels", "FRAGMENT")
_LIB.define(
    "scan(str cell, Tensor x, Tensor h_0, Tensor? c_0, Tensor[] weights, bool batch_first, bool save)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor states, Tensor gates)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIB.define(
    "scan_backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h_0, Tensor? c_0,"
    " Tensor[] weights, Tensor states, Tensor gates, bool batch_first, bool needs_dx, bool needs_dw)"
    " -> (Tensor dx, Tensor dh_0, Tensor dc_0, Tensor[] dweights)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _driver(x):
    return driver("scan", x.device)


def through_operator(cell, x, h_0, c_0, weights, batch_first):
    """(y, h_n, c_n) by the operator, which compilers, tracers and modes see.

    A plain call that records a gradient is `recorded`.
    """
    tensors = [t for t in (x, h_0, c_0, *weights) if t is not None]
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if save and _check.plain_thread() and _check.plain(x.dtype, *tensors):
        return recorded(cell, x, h_0, c_0, weights, batch_first)
    return torch.ops.seqkernels.scan(cell, x, h_0, c_0, weights, batch_first, save)[:3]


def recorded(cell, x, h_0, c_0, weights, batch_first):
    """(y, h_n, c_n) of plain tensors, by the operator's implementation as a node of autograd.

    Lists of tensors in an operator's autograd cost about 400 microseconds a training step.
    """
    return _Recorded.apply(cell, batch_first, x, h_0, c_0, *weights)


def step_through_operator(cell, x, h, c, weights):
    """(h', c') by the operator, from x (B, I), h and c (B, H)."""
    c_0 = None if c is None else c.unsqueeze(0)
    _, h_n, c_n = through_operator(cell, x.unsqueeze(0), h.unsqueeze(0), c_0, weights, False)
    return h_n.squeeze(0), None if c is None else c_n.squeeze(0)


def readable(x):
    """x itself where its last dimension is dense, else a dense copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward_kernel(cell, x, h_0, c_0, weights, batch_first, save):
    return _present(x, *_forward(cell, x, h_0, c_0, weights, batch_first, save))


def _present(x, *tensors):
    """The tensors, an empty one where there is none: what an operator returns."""
    return tuple(x.new_empty((0,)) if t is None else t for t in tensors)


def _forward(cell, x, h_0, c_0, weights, batch_first, save):
    """What the driver's `forward` returns, from arguments of any kind."""
    _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first)
    reason = _check.tensor_reason("x", x)
    if reason is not None:
        raise NotImplementedError(reason)
    if 0 in (*x.shape[:2], *h_0.shape):
        return _empty_outputs(cell, x, h_0, c_0, batch_first, save)
    _check.stored(("x", x), ("h_0", h_0), ("c_0", c_0), *((f"weights[{i}]", w) for i, w in enumerate(weights)))
    c_0 = None if c_0 is None else c_0.contiguous()
    return _driver(x).forward(cell, readable(x), h_0.contiguous(), c_0, list(weights), batch_first, save)


def _empty_outputs(cell, x, h_0, c_0, batch_first, save):
    """The outputs for an empty batch, or of no hidden units: nothing to compute."""
    y, h_n, c_n, states, gates = _allocate(cell, x, h_0, c_0, batch_first, save)
    return y, h_n.copy_(h_0), c_n if c_0 is None else c_n.copy_(c_0), states, gates


def _allocate(cell, x, h_0, c_0, batch_first, save):
    D, B, H = h_0.shape
    T = x.shape[1] if batch_first else x.shape[0]
    y = x.new_empty((B, T, D * H) if batch_first else (T, B, D * H))
    h_n = x.new_empty((D, B, H))
    c_n = x.new_empty((0,) if c_0 is None else (D, B, H))
    states = x.new_empty((CELLS[cell].states, D, T, B, H) if save else (0,))
    gates = x.new_empty((_driver(x).gates_size(cell, T, B, H, D, x.dtype) if save else 0,))
    return y, h_n, c_n, states, gates


def _forward_fake(cell, x, h_0, c_0, weights, batch_first, save):
    _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first)
    return _allocate(cell, x, h_0, c_0, batch_first, save)


def _backward_kernel(cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw):
    T = _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first)[0]
    if 0 not in h_0.shape:
        _check_saved(cell, dy, dh_n, dc_n, x, h_0, c_0, states, gates, batch_first, T)
        states, gates = states.contiguous(), gates.contiguous()
    given = (dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates)
    *gradients, dweights = _trusted_backward(cell, *given, batch_first, needs_dx, needs_dw)
    return (*_present(x, *gradients), dweights or [])


def _trusted_backward(cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw):
    """What the driver's `backward` returns, from arguments of the right sizes."""
    if 0 in h_0.shape:
        given = (dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates)
        made = _backward_fake(cell, *given, batch_first, needs_dx, needs_dw)
        return (*(t.zero_() for t in made[:3]), [t.zero_() for t in made[3]])
    dy, dh_n, dc_n, c_0 = (None if t is None else t.contiguous() for t in (dy, dh_n, dc_n, c_0))
    saved = (readable(x), h_0.contiguous(), c_0, weights, states, gates)
    return _driver(x).backward(cell, dy, dh_n, dc_n, *saved, batch_first, needs_dx, needs_dw)


def _check_saved(cell, dy, dh_n, dc_n, x, h_0, c_0, states, gates, batch_first, T):
    D, B, H = h_0.shape
    shape = (B, T, D * H) if batch_first else (T, B, D * H)
    state = (D, B, H) if c_0 is not None else (0,)
    size = _driver(x).gates_size(cell, T, B, H, D, x.dtype)
    expected = [("dy", dy, shape), ("dh_n", dh_n, (D, B, H)), ("dc_n", dc_n, state)]
    expected += [("states", states, (CELLS[cell].states, D, T, B, H)), ("gates", gates, (size,))]
    for name, tensor, shape in expected:
        if tensor is not None:
            _check.matches(name, tensor, shape, x)


def _backward_fake(cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw):
    empty = x.new_empty
    dx = empty(x.shape if needs_dx else (0,))
    dweights = [empty(w.shape) for w in weights] if needs_dw else []
    return dx, empty(h_0.shape), empty((0,) if c_0 is None else c_0.shape), dweights


def _save_for_backward(ctx, inputs, output):
    cell, x, h_0, c_0, weights, batch_first, save = inputs
    _, _, _, states, gates = output
    ctx.cell, ctx.batch_first, ctx.save, ctx.per_layer = cell, batch_first, save, len(weights)
    ctx.mark_non_differentiable(states, gates)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h_0, c_0, *weights, states, gates)


def _backward(ctx, dy, dh_n, dc_n, dstates, dgates):
    needs = ctx.needs_input_grad[1], any(ctx.needs_input_grad[4])
    dx, dh_0, dc_0, dweights = _gradients(ctx, dy, dh_n, dc_n, *needs, torch.ops.seqkernels.scan_backward)
    return None, dx, dh_0, dc_0, dweights, None, None


def _gradients(ctx, dy, dh_n, dc_n, needs_dx, needs_dw, run):
    """(dx, dh_0, dc_0, the weights') from what `ctx` saved, by run: the backward operator or what it runs."""
    x, h_0, c_0, *rest = ctx.saved_tensors
    weights, (states, gates) = rest[: ctx.per_layer], rest[ctx.per_layer :]
    cell, batch_first = ctx.cell, ctx.batch_first
    dc_n = None if c_0 is None else dc_n
    if dy is None and dh_n is None and dc_n is None:
        return None, None, None, [None] * len(weights)
    if not ctx.save:
        with torch.no_grad():
            *_, states, gates = torch.ops.seqkernels.scan(cell, x, h_0, c_0, weights, batch_first, True)
    dx, dh_0, dc_0, dweights = run(
        cell, dy, dh_n, dc_n, x, h_0, c_0, weights, states, gates, batch_first, needs_dx, needs_dw
    )
    dweights = dweights if needs_dw else [None] * len(weights)
    return dx if needs_dx else None, dh_0, None if c_0 is None else dc_0, dweights


class _Recorded(torch.autograd.Function):
    """`seqkernels::scan` and its gradient as a node of autograd."""

    @staticmethod
    def forward(ctx, cell, batch_first, x, h_0, c_0, *weights):
        y, h_n, c_n, states, gates = _forward(cell, x, h_0, c_0, weights, batch_first, True)
        ctx.cell, ctx.batch_first, ctx.save, ctx.per_layer = cell, batch_first, True, len(weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_0, c_0, *weights, states, gates)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n):
        # With create_graph the gradient is recorded in its turn: the operator knows how.
        run = torch.ops.seqkernels.scan_backward if torch.is_grad_enabled() else _trusted_backward
        needs = ctx.needs_input_grad[2], any(ctx.needs_input_grad[5:])
        dx, dh_0, dc_0, dweights = _gradients(ctx, dy, dh_n, dc_n, *needs, run)
        return None, None, dx, dh_0, dc_0, *dweights


for _key in ("CPU", "CUDA"):
    _LIB.impl("scan", _forward_kernel, _key)
    _LIB.impl("scan_backward", _backward_kernel, _key)
torch.library.register_fake("seqkernels::scan", _forward_fake, lib=_LIB)
torch.library.register_fake("seqkernels::scan_backward", _backward_fake, lib=_LIB)
torch.library.register_autograd("seqkernels::scan", _backward, setup_context=_save_for_backward, lib=_LIB)
torch.library.register_autograd(
    "seqkernels::scan_backward", double_backward.run, setup_context=double_backward.save, lib=_LIB
)
