"""One layer's scan on a GPU, prepared once: its memory, its products, and the kernel with its arguments, to be run over
as many steps at a time as is wanted. Trusts its arguments.

Time comes first in what these take, x (T, B, I), dy (T, B, D H) and the `Ragged` alike; a row of x is dense. Steps are
those of the first direction: with two, a range of them makes sense for launches alone, and all of them for products.
"""

from functools import cached_property

import torch

from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu.primitives import on_blocks
from seqkernels.kernels.gpu.regimes import plan_for
from seqkernels.kernels.gpu.scan_backward import scan_backward
from seqkernels.kernels.gpu.scan_forward import scan_forward

from .launch_gpu import described, recurrent_precision
from .packing import per_direction
from .ragged import NOT_RAGGED, hidden
from .scan_recompute_gpu import gates_from_states


def kept_dtype(dtype):
    """Of the states and gates that a forward keeps."""
    return dtype


def gates_size(cell, T, B, H, D, dtype):
    """Elements of the `gates` that a forward saves."""
    return D * T * CELLS[cell].saved * B * H


def planned(cell, D, B, H, x):
    """The `regimes.Plan` of a layer of such sizes on x's device."""
    return plan_for(cell, H, B, D, x.element_size(), described(x.device), recurrent_precision() != "tf32")


def time_first(x, batch_first):
    """x (T, B, *), or x (B, T, *) with batch_first, as (T, B, *)."""
    return x.transpose(0, 1) if batch_first else x


class Forward:
    """A layer's forward. Steps are projected before they are launched, and launched in their order, each once."""

    def __init__(
        self, cell, x, h0, c0, weights, batch_first, save, plan=None, ragged=NOT_RAGGED, recompute=False
    ):  # fmt: skip
        """As `scan_gpu.forward`, but that of batch_first y alone knows."""
        (T, B, _), (D, _, H), kind = x.shape, h0.shape, CELLS[cell]
        self._x, self._batch_first, self._lengths = x, batch_first, ragged.lengths
        self._groups = per_direction(cell, weights)
        self._projected = x.new_empty((D, T, B, kind.gates * H))
        self.y = x.new_empty((B, T, D * H) if batch_first else (T, B, D * H))
        self._h_n, self._c_n = h0.clone(), None if c0 is None else c0.to(torch.float32, copy=True)
        self._states = x.new_empty((kind.states, D, T, B, H)) if save else None
        stored = 0 if recompute else kind.saved
        self._gates = x.new_empty(0 if recompute else gates_size(cell, T, B, H, D, x.dtype)) if save else None
        y = time_first(self.y, batch_first)
        h = (self._states[0], T * B * H, B * H, H) if save else (y, H, *y.stride()[:2])
        c = self._states[1] if save and c0 is not None else None
        w_hh, reset_u = _stacked(self._groups, 1), None
        if ragged.reset_h is not None:
            reset_u = ragged.reset_h.to(torch.float32) @ w_hh.to(torch.float32).mT
        arguments = (self._projected, *self._projected.stride()[:3], w_hh, _stacked(self._groups, 3), h0)
        arguments += (y, *y.stride()[:2], *h, c, self._gates, self._h_n, self._c_n, *ragged.for_kernels(), reset_u)
        options = {"CELL": on_blocks(cell)[0], "KEEP": save, "SAVED": stored}
        self.launch = _Launch(scan_forward, arguments, cell, x, h0, plan, **options)

    def project(self, first, last):
        """The products of the steps first ... last - 1 that need no h."""
        x = _rows(self._x[first:last])
        for (w_ih, _, *biases), projected in zip(self._groups, self._projected):
            out = _rows(projected[first:last])
            if biases:
                torch.addmm(biases[0], x, w_ih.mT, out=out)
            else:
                torch.mm(x, w_ih.mT, out=out)

    def results(self):
        """What `scan_gpu.forward` returns, once all steps have been launched."""
        y = hidden(self.y, self._lengths, self._batch_first)  # where the kernel, which may read it, left the last h
        return y, self._h_n, None if self._c_n is None else self._c_n.to(y.dtype), self._states, self._gates


class Backward:
    """A layer's backward. Steps count from the end of the forward, and are launched in their order, each once."""

    def __init__(
        self, cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, needs_dx, plan=None, ragged=NOT_RAGGED
    ):  # fmt: skip
        """As `scan_gpu.backward`."""
        (T, B, _), D, kind = x.shape, len(h0), CELLS[cell]
        if dy is not None and dy.stride(2) != 1:
            dy = dy.contiguous()
        self._x, self._h0, self._h, self._ragged = x, h0, states[0], ragged
        self._groups = per_direction(cell, weights)
        self._w_hh = _stacked(self._groups, 1)
        if kind.saved and not gates.numel():
            gates = gates_from_states(cell, x, h0, c0, self._groups, states, ragged)
        self._inputs = x.new_empty((D, T, B, kind.gates * h0.shape[2]))
        apart = None if kind.slots.x == kind.slots.u else torch.empty_like(self._inputs)
        self._recurrents = self._inputs if apart is None else apart
        self.dx = x.new_empty(x.shape) if needs_dx else None
        self._dh, self._dc = _started(dh_n, h0), None if c0 is None else _started(dc_n, c0)
        self._fresh = [None if s is None else torch.zeros_like(s, dtype=torch.float32) for s in ragged[2:4]]
        c, dy_strides = None if c0 is None else states[1], (0, 0) if dy is None else dy.stride()[:2]
        arguments = (dy, *dy_strides, self._w_hh, h0, c0, states[0], c, gates, self._inputs, apart)
        arguments += (self._dh, self._dc, *ragged.for_kernels(), *self._fresh)
        self._launch = _Launch(scan_backward, arguments, cell, x, h0, plan, CELL=on_blocks(cell)[1])

    def launch(self, first, last):
        """The steps first ... last - 1; with the last of all, what leads to h_0."""
        self._launch(first, last + (last == len(self._x)))

    def to_inputs(self, first, last):
        """dx of the steps first ... last - 1, once they have been launched."""
        times = slice(len(self._x) - last, len(self._x) - first)
        dx = _rows(self.dx[times])
        torch.mm(_rows(self._inputs[0, times]), self._groups[0][0], out=dx)
        for inputs, group in zip(self._inputs[1:], self._groups[1:]):
            dx += _rows(inputs[times]) @ group[0]

    def to_states(self):
        """dh0 and dc0, once all steps have been launched."""
        return self._dh.to(self._x.dtype), None if self._dc is None else self._dc.to(self._x.dtype)

    def to_weights(self):
        """The list of the weights' gradients, once all steps have been launched."""
        reset, reset_h = self._ragged.reset, self._ragged.reset_h
        x, dweights = hidden(self._x, self._ragged.lengths, False), []
        for d, group in enumerate(self._groups):
            inputs = self._inputs[d]
            recurrents = inputs if self._recurrents is self._inputs else self._recurrents[d]
            gradients = _weight_gradients(d, inputs, recurrents, x, self._h0[d], self._h[d], reset)
            if reset_h is not None:
                gradients[1] += self._fresh_du[d].mT.to(x.dtype) @ reset_h[d]
            dweights += gradients[: len(group)]
        return dweights

    def to_reset_states(self):
        """The gradients of reset_h and reset_c, as many as there are, once all steps have been launched."""
        if self._ragged.reset_h is None:
            return []
        dreset_h, *dreset_c = (t for t in self._fresh if t is not None)
        return [t.to(self._x.dtype) for t in (dreset_h + self._fresh_du @ self._w_hh.to(torch.float32), *dreset_c)]

    @cached_property
    def _fresh_du(self):
        """(D, B, G H) float32: what the rows that start again pass on to reset_h through W_hh."""
        marks = self._ragged.reset
        return torch.stack([_masked(du, ~marks).sum(0, dtype=torch.float32) for du in self._recurrents])


class _Launch:
    """A kernel of the scan with its arguments: a call runs the steps first ... last - 1; "stepwise" one a launch."""

    def __init__(self, kernel, arguments, cell, x, h0, plan, **constants):
        (D, B, H), T, kind = h0.shape, len(x), CELLS[cell]
        plan = planned(cell, D, B, H, x) if plan is None else plan
        groups, row_groups = plan.blocks(H, B)
        counters = torch.zeros(D * row_groups * plan.chunks(H), dtype=torch.int32, device=x.device)
        self._run, self._x, self._stepwise = kernel[(D * row_groups * groups,)], x, plan.regime == "stepwise"
        self._arguments = (*arguments, counters, T, B, H)
        self._constants = {
            "GATES": kind.gates, "STATES": kind.states, "SAVED": kind.saved,
            "REGIME": plan.regime, "UNITS": plan.units, "ROWS": plan.rows,
            "CHUNK": plan.chunk, "CHUNKS": plan.chunks(H),
            "PRECISION": recurrent_precision(), "num_warps": plan.warps, "num_stages": plan.stages,
            **constants,
        }  # fmt: skip
        if plan.waits:
            self._constants["launch_cooperative_grid"] = True

    def __call__(self, first, last):
        stride = 1 if self._stepwise else last - first
        with torch.cuda.device_of(self._x):
            for step in range(first, last, stride):
                self._run(*self._arguments, step, step + stride, **self._constants)


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
