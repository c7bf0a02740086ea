"""The scan on a GPU: allocates, projects the inputs, chooses the regime, launches. Trusts its arguments.

float32, float16 and bfloat16; sums and c are float32. On CPU tensors the kernels run in Triton's interpreter, where
TRITON_INTERPRET was set before Triton was imported.
"""

import torch

from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu.primitives import on_blocks
from seqkernels.kernels.gpu.regimes import plan_for
from seqkernels.kernels.gpu.scan_backward import scan_backward
from seqkernels.kernels.gpu.scan_forward import scan_forward

from . import step_gpu
from .launch_gpu import described, in_recurrent_precision, recurrent_precision
from .packed import per_direction
from .ragged import NOT_RAGGED, hidden


def gates_size(cell, T, B, H, D, dtype):
    """Elements of the `gates` that `forward(save=True)` returns."""
    return D * T * CELLS[cell].saved * B * H


@in_recurrent_precision
def forward(cell, x, h0, c0, weights, batch_first, save, plan=None, ragged=NOT_RAGGED):
    """y, h_n, c_n, states, gates of one layer of D directions; arguments and results as `scan_cpu.forward`.

    plan: the `regimes.Plan` to run with, or None for the one that suits the sizes and the device. ragged: which rows
    end early or start again. Past a row's end, `states` has its last states.
    """
    (D, B, H), ragged = h0.shape, ragged.without_idle_resets(batch_first)
    kind, time = CELLS[cell], 1 if batch_first else 0
    T, groups = x.shape[time], per_direction(cell, weights)
    if T == D == 1 and not save and plan is None:
        return step_gpu.scan(cell, x, h0, c0, groups[0], batch_first)
    projected = torch.stack([torch.nn.functional.linear(x, g[0], g[2] if len(g) == 4 else None) for g in groups])
    y = x.new_empty((B, T, D * H) if batch_first else (T, B, D * H))
    h_n, c_n = h0.clone(), None if c0 is None else c0.to(torch.float32, copy=True)
    states = x.new_empty((kind.states, D, T, B, H)) if save else None
    gates = x.new_empty(gates_size(cell, T, B, H, D, x.dtype)) if save else None
    y_strides = y.stride(time), y.stride(1 - time)
    h = (states[0], T * B * H, B * H, H) if save else (y, H, *y_strides)
    x_strides = projected.stride(0), projected.stride(1 + time), projected.stride(2 - time)
    c = states[1] if save and c0 is not None else None
    w_hh, reset_u = _stacked(groups, 1), None
    if ragged.reset_h is not None:
        reset_u = ragged.reset_h.to(torch.float32) @ w_hh.to(torch.float32).mT
    arguments = (projected, *x_strides, w_hh, _stacked(groups, 3), h0, y, *y_strides, *h, c, gates)
    arguments += (h_n, c_n, *ragged.for_kernels(time), reset_u)
    _launch(scan_forward, arguments, cell, x, h0, T, T, plan, CELL=on_blocks(cell)[0], KEEP=save)
    y = hidden(y, ragged.lengths, batch_first)  # where the kernel, which may read h back from it, left the last h
    return y, h_n, None if c_n is None else c_n.to(x.dtype), states, gates


@in_recurrent_precision
def backward(
    cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, batch_first, needs_dx, needs_dw, plan=None,
    ragged=NOT_RAGGED,
):  # fmt: skip
    """dx, dh0, dc0 and the list of the weights' gradients; arguments and results as `scan_cpu.backward`.

    plan, ragged: as for `forward`. With reset_h its gradient follows, with reset_c also that.
    """
    (D, B, H), ragged = h0.shape, ragged.without_idle_resets(batch_first)
    kind, time = CELLS[cell], 1 if batch_first else 0
    T, G, groups = x.shape[time], kind.gates, per_direction(cell, weights)
    if dy is not None and dy.stride(2) != 1:
        dy = dy.contiguous()
    dy_strides = (0, 0) if dy is None else (dy.stride(time), dy.stride(1 - time))
    inputs = x.new_empty((D, T, B, G * H))
    recurrents = None if kind.slots.x == kind.slots.u else torch.empty_like(inputs)
    dh, dc = _started(dh_n, h0), None if c0 is None else _started(dc_n, c0)
    c = None if c0 is None else states[1]
    w_hh = _stacked(groups, 1)
    fresh = [None if s is None else torch.zeros_like(s, dtype=torch.float32) for s in ragged[2:]]
    arguments = (dy, *dy_strides, w_hh, h0, c0, states[0], c, gates, inputs, recurrents, dh, dc)
    arguments += (*ragged.for_kernels(time), *fresh)
    _launch(scan_backward, arguments, cell, x, h0, T, T + 1, plan, CELL=on_blocks(cell)[1])
    dx = dweights = fresh_du = None
    recurrents = inputs if recurrents is None else recurrents
    marks = ragged.reset.mT if batch_first and ragged.reset is not None else ragged.reset
    if ragged.reset_h is not None:
        fresh_du = torch.stack([_masked(du, ~marks).sum(0, dtype=torch.float32) for du in recurrents])
    if needs_dx:
        dx = sum(inputs[d] @ groups[d][0] for d in range(D))
        dx = dx.transpose(0, 1).contiguous() if batch_first else dx
    if needs_dw:
        x = hidden(x, ragged.lengths, batch_first)
        x = x.transpose(0, 1) if batch_first else x
        dweights = []
        for d, group in enumerate(groups):
            gradients = _weight_gradients(d, inputs[d], recurrents[d], x, h0[d], states[0, d], marks)
            if ragged.reset_h is not None:
                gradients[1] += fresh_du[d].mT.to(x.dtype) @ ragged.reset_h[d]
            dweights += gradients[: len(group)]
    gradients = dh.to(x.dtype), None if dc is None else dc.to(x.dtype), dweights
    if ragged.reset_h is None:
        return dx, *gradients
    fresh[0] += fresh_du @ w_hh.to(torch.float32)
    return dx, *gradients, *(t.to(x.dtype) for t in fresh if t is not None)


def _weight_gradients(d, inputs, recurrents, x, h0, h, marks):
    """Those of w_ih, w_hh, b_ih and b_hh of direction d, from the pre-activations' gradients (T, B, G H), x (T, B, I),
    h_0 (B, H) and all h (T, B, H). marks: None, or (T, B), the rows that start a step from zero."""
    T = len(h)
    first, others, before = (0, slice(1, None), slice(0, T - 1)) if d == 0 else (T - 1, slice(0, T - 1), slice(1, None))
    h = h[before]
    if marks is not None:
        h0, h = _masked(h0, marks[first]), _masked(h, marks[others])
    dw_hh = torch.addmm(recurrents[first].mT @ h0, _rows(recurrents[others]).mT, _rows(h))
    db = inputs.sum((0, 1))
    return [_rows(inputs).mT @ _rows(x), dw_hh, db, recurrents.sum((0, 1)) if recurrents is not inputs else db.clone()]


def _masked(x, rows):
    """x (..., B, *), zero in the rows (..., B) that are marked, whatever was there."""
    return x.masked_fill(rows.unsqueeze(-1), 0)


def _rows(x):
    """x (T, B, *) as (T B, *)."""
    return x.reshape(-1, x.shape[2])


def _started(gradient, like):
    """float32 memory that starts as a gradient, or as zero where there is none."""
    if gradient is None:
        return torch.zeros_like(like, dtype=torch.float32)
    return gradient.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _stacked(groups, index):
    """The directions' weights of a kind as one tensor, or None where there are none."""
    if len(groups[0]) <= index:
        return None
    return torch.stack([group[index] for group in groups])


def _launch(kernel, arguments, cell, x, h0, T, steps, plan, **constants):
    """All steps of a scan: in one launch, or "stepwise" in one each."""
    (D, B, H), kind = h0.shape, CELLS[cell]
    precision = recurrent_precision()
    if plan is None:
        plan = plan_for(cell, H, B, D, x.element_size(), described(x.device), precision != "tf32")
    groups, row_groups = plan.blocks(H, B)
    counters = torch.zeros(D * row_groups * plan.chunks(H), dtype=torch.int32, device=x.device)
    options = {"launch_cooperative_grid": True} if plan.waits else {}
    stride = 1 if plan.regime == "stepwise" else steps
    with torch.cuda.device_of(x):
        for first in range(0, steps, stride):
            kernel[(D * row_groups * groups,)](
                *arguments, counters, T, B, H, first, first + stride,
                GATES=kind.gates, STATES=kind.states, SAVED=kind.saved,
                REGIME=plan.regime, UNITS=plan.units, ROWS=plan.rows, CHUNK=plan.chunk, CHUNKS=plan.chunks(H),
                PRECISION=precision, num_warps=plan.warps, num_stages=plan.stages, **constants, **options,
            )  # fmt: skip
