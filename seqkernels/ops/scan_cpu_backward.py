"""The scan on a CPU, backward: allocates, packs, splits over threads, and calls the kernel."""

from functools import partial
from itertools import accumulate
from math import prod

import torch

from . import crews
from .compiled import compiled, computed, widths
from .packed import kept_parameters
from .packing import pack_backward, per_direction
from .ragged import NOT_RAGGED
from .scan_gates import gates_of
from .scan_rows import address, reset_states, rows_of
from .splits import parts_for
from .workspace import on_huge_pages, workspace


def backward(
    cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, batch_first, needs_dx, needs_dw, ragged=NOT_RAGGED
):  # fmt: skip
    """dx, dh0, dc0 and the list of the weights' gradients, from the gradients of y, h_n and c_n (each may be None).

    Shapes and strides as in `forward`; states and gates are only read; gates that were not kept are made anew, a chunk
    at a time. What is not needed, or does not exist, is None.
    With ragged.reset_h its gradient follows, with reset_c also that. Of bfloat16 sums are float32, and the gates'
    gradients are rounded.
    """
    dtype, wide = x.dtype, computed(x.dtype)
    rows = rows_of(x, h0, batch_first, ragged)
    x, dy, h0, c0, dh_n, dc_n = rows.pack(x), rows.pack(dy), *map(rows.sort, (h0, c0, dh_n, dc_n))
    dx = on_huge_pages(rows.empty(x, x.shape[-1])) if needs_dx else None
    if dy is not None and dy.stride(-1) != 1:
        dy = dy.contiguous()
    kept, groups = kept_parameters(cell, weights, rows.T), per_direction(cell, weights)
    pack = partial(_pack, cell, groups) if kept is None else partial(kept.backward, weights)
    dh0, dc0 = rows.final_gradient(h0.to(wide), None if dh_n is None else dh_n.to(wide)), None
    if c0 is not None:  # carried from step to step in place
        c0 = c0.to(wide)
        dc0 = torch.zeros_like(c0) if dc_n is None else dc_n.to(wide, copy=True, memory_format=torch.contiguous_format)
    resets = reset_states(rows, h0, c0, ragged)
    dresets = [None if s is None else torch.zeros_like(s, dtype=wide) for s in resets]
    shared = (pack, rows, dy, dh_n, x, h0, c0, states, dx, dh0, dc0, needs_dw, resets, dresets)
    results = [_Backward(cell, d, group, *shared) for d, group in enumerate(groups)]
    for result in results:
        result.run(gates)
    dweights = [g.to(dtype) for r in results for g in r.dweights] if needs_dw else None
    made = [dh0, dc0, *(made for made, given in zip(dresets, ragged[2:4]) if given is not None)]
    dh0, dc0, *asked = (s if s is None else rows.unsort(s).to(dtype) for s in made)
    return rows.unpack(dx) if needs_dx else None, dh0, dc0, dweights, *asked


def _pack(cell, groups, d, operand):
    return pack_backward(cell, groups[d][operand == "h"], operand)


class _Backward:
    """One direction's backward: its memory, and the kernel's arguments."""

    def __init__(
        self, cell, d, weights, pack, rows, dy, dh_n, x, h0, c0, states, dx, dh0, dc, needs_dw, resets, dresets
    ):  # fmt: skip
        self.cell, self.d, self.weights, self.rows = cell, d, weights, rows
        self.T, self.B, self.I, self.H = rows.T, rows.B, x.shape[-1], h0.shape[2]
        self.size, self.stored = widths(x.dtype)
        self.shape = compiled().layout(cell, self.size, True, self.stored)
        self.slabs = self.shape.slabs(self.H)
        self.length = compiled().steps(self.B)  # steps of a chunk
        self.chunks = -(-self.T // self.length)
        self.x, self.dx, self.needs_dw = x, dx, needs_dw
        self.h0, self.c0, self._dh0, self._dc = (address(t, d) for t in (h0, c0, dh0, dc))
        state = prod(rows.kept) * self.H  # elements of all steps
        first, D = states.data_ptr(), len(h0)
        self.states = first + self.stored * d * state, first + self.size * (D + d) * state
        self._zeros = torch.zeros_like(dh0[d])  # zeros of any dtype
        self._direct_h = torch.zeros_like(dh0[d]) if self.shape.has_direct_h else self._zeros  # which nobody writes
        last = self._zeros if dh_n is None else dh_n[d]
        self._dy = (self._zeros.data_ptr(), 0, self.H)
        if dy is not None:
            self._dy = rows.place(dy, d, d * self.H)
            end = rows.at_ends(dy, d)[:, d * self.H : (d + 1) * self.H]
            last = end if dh_n is None else end + last
        self._dy_last = last.contiguous()
        self.ragged = (rows.steps[d], rows.marks[d], address(resets[0], d))
        self.resets = (address(resets[1], d), *(address(t, d) for t in dresets))
        self._w_hh, self._w_ih = pack(d, "h"), None if dx is None else pack(d, "x")
        if needs_dw:
            new = torch.empty if self.T else torch.zeros
            self.dweights = [new(w.shape, dtype=dh0.dtype) for w in weights]

    def run(self, gates):
        """All chunks, on as many threads as their work is worth: they share each step's panels, or its rows."""
        shape, size, rows = self.shape, self.size, min(self.T, self.length) * self.B
        terms = -(-rows // shape.per_lane)
        parts = parts_for(4.0 * self.rows.count * shape.gates * self.H * (self.I + self.H))
        members = min(parts, crews.members(self.B, shape, self.H, shape.panels(self.H)))
        by_rows, members = int(members == 1), min(parts, compiled().crew.MOST) if members == 1 else members
        saved = gates_of(self, gates)
        columns = -(-max(self.I, self.H) // shape.wide) * shape.wide
        gradients = self.slabs * shape.gradient_row
        counts = [2 * rows * gradients, members * rows * shape.panel_columns, members * terms * columns]
        counts += [members * terms * gradients if shape.per_lane > 1 else 0]
        memory = workspace(sum(counts) + saved.elements(parts), computed(self.x.dtype))
        *places, rest = accumulate((size * count for count in counts), initial=memory.data_ptr())
        kernel = compiled().kernel("scan_backward", cell=self.cell, size=size, stored=self.stored)
        given, made = self._inputs(), self._outputs()
        for first, last, *gates in saved.ready(rest, parts):
            sizes = self.T, self.B, self.I, self.H, first, last
            arguments = (*given, *gates, *made, *places, *sizes, *self.ragged, *self.resets, by_rows)
            if members > 1:
                crews.run(kernel, arguments, members, crews.patience(shape, self.H))
            else:
                kernel(*arguments, 0, 0)

    def _inputs(self):
        step = self.rows.stride * self.H
        c = (self.states[1], step) if self.c0 else (0, 0)
        x = self.rows.place(self.x, self.d)
        return *self._dy, self._dy_last.data_ptr(), *x, self.states[0], step, self.h0, self.c0, *c

    def _outputs(self):
        dx, w_ih = (0, 0, 0), 0
        if self.dx is not None:
            dx, w_ih = self.rows.place(self.dx, self.d), self._w_ih.data_ptr()
        dweights = [w.data_ptr() for w in self.dweights] if self.needs_dw else []
        dweights += [0] * (4 - len(dweights))
        carried = self._direct_h.data_ptr(), self._dc, self._dh0
        return self._w_hh.data_ptr(), w_ih, *carried, *dx, self.d, *dweights
