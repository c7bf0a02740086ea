"""The scan on a CPU, backward: the steps in reverse, chunk by chunk, and the products that follow."""

from functools import partial

import torch

from . import crews, threads
from .compiled import compiled
from .packing import pack_backward, per_direction
from .ragged import NOT_RAGGED
from .scan_gates import gates_of
from .scan_rows import address, reset_states, rows_of
from .splits import parts_for, ranges, row_ranges
from .workspace import on_huge_pages, workspace


def backward(
    cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, batch_first, needs_dx, needs_dw, ragged=NOT_RAGGED
):  # fmt: skip
    """dx, dh0, dc0 and the list of the weights' gradients, from the gradients of y, h_n and c_n (each may be None).

    Shapes and strides as in `forward`; states and gates are only read; gates that were not kept are made anew, a chunk
    at a time. What is not needed, or does not exist, is None.
    With ragged.reset_h its gradient follows, with reset_c also that.
    """
    rows = rows_of(x, h0, batch_first, ragged)
    x, dy, h0, c0, dh_n, dc_n = rows.pack(x), rows.pack(dy), *map(rows.sort, (h0, c0, dh_n, dc_n))
    dx = on_huge_pages(rows.empty(x, x.shape[-1])) if needs_dx else None
    if dy is not None and dy.stride(-1) != 1:
        dy = dy.contiguous()
    groups = per_direction(cell, weights)
    dh0, dc0 = rows.final_gradient(h0, dh_n), None
    if c0 is not None:  # carried from step to step in place
        dc0 = torch.zeros_like(c0) if dc_n is None else dc_n.clone(memory_format=torch.contiguous_format)
    resets = reset_states(rows, h0, c0, ragged)
    dresets = [None if s is None else torch.zeros_like(s) for s in resets]
    shared = (rows, dy, dh_n, x, h0, c0, states, dx, dh0, dc0, needs_dw, resets, dresets)
    results = [_Backward(cell, d, groups[d], *shared) for d in range(len(h0))]
    _run_backward(results, gates)
    dweights = [g for r in results for g in r.dweights] if needs_dw else None
    asked = [rows.unsort(made) for made, given in zip(dresets, ragged[2:4]) if given is not None]
    return rows.unpack(dx) if needs_dx else None, rows.unsort(dh0), rows.unsort(dc0), dweights, *asked


class _Backward:
    """One direction's backward: its memory, and the kernels' arguments chunk by chunk."""

    def __init__(
        self, cell, d, weights, rows, dy, dh_n, x, h0, c0, states, dx, dh0, dc, needs_dw, resets, dresets
    ):  # fmt: skip
        self.cell, self.d, self.weights, self.rows = cell, d, weights, rows
        self.T, self.B, self.I, self.H = rows.T, rows.B, x.shape[-1], h0.shape[2]
        self.size = x.element_size()
        self.shape = compiled().layout(cell, self.size, True)
        self.x, self.dx, self.needs_dw = x, dx, needs_dw
        self.h0, self.c0, self.dh0, self.dc = (address(t, d) for t in (h0, c0, dh0, dc))
        self.states = [address(s, d) for s in states]
        self.zeros = torch.zeros_like(h0[d])
        self.direct_h = torch.zeros_like(self.zeros) if self.shape.has_direct_h else self.zeros  # which nobody writes
        last = self.zeros if dh_n is None else dh_n[d]
        self.dy = (self.zeros.data_ptr(), 0, self.H)
        if dy is not None:
            self.dy = rows.place(dy, d, d * self.H)
            end = rows.at_ends(dy, d)[:, d * self.H : (d + 1) * self.H]
            last = end if dh_n is None else end + last
        self.dy_last = last.contiguous()
        self.slabs = self.shape.slabs(self.H)
        self.length = min(self.T, compiled().steps(self.B))
        self.ragged = (rows.steps[d], rows.marks[d], address(resets[0], d))
        self.resets = (address(resets[1], d), *(address(t, d) for t in dresets))
        self.w_hh = pack_backward(cell, weights[1], "h")
        self.w_ih = pack_backward(cell, weights[0], "x") if dx is not None else None
        if needs_dw:
            new = torch.empty if self.T else torch.zeros
            self.dweights = [new(w.shape, dtype=w.dtype) for w in weights]

    def chunks(self):
        """The first steps of the chunks, the last one first."""
        return range(0, self.T, max(1, self.length))[::-1]

    def chunk(self, t0):
        """(first row, rows) of the chunk from step t0."""
        return self.rows.chunk(self.d, t0, self.count(t0))

    def gradient_elements(self):
        """Elements of the gate gradients of one chunk."""
        return self.length * self.B * self.slabs * self.shape.gradient_row

    def panel_elements(self):
        """Elements of the columns of x or h of one chunk, packed."""
        columns = max(self.I, self.H)
        return self.length * self.B * -(-columns // self.shape.wide) * self.shape.wide

    def sum_elements(self):
        """Elements of the sums over one panel of columns for all rows of a chunk."""
        return self.length * self.B * self.shape.panel_columns

    def step_arguments(self, t0, gates, here, later, sums, first, last):
        """`scan_backward` on the chunk from step t0: gradients go to `here`, `later` are the next chunk's."""
        size, shape, H = self.size, self.shape, self.H
        step, after, later_rows = self.rows.stride * H, t0 + self.length, 0
        c = (self.c0, self.states[1], step) if self.c0 else (0, 0, 0)
        if after < self.T:
            later_low, later_rows = self.chunk(after)
            later += size * shape.gradient_row * (self.rows.first(self.d, after) - later_low)
        return (
            *self.dy,
            self.dy_last.data_ptr(),
            *(self.states[0], step, self.h0),
            *c,
            *(gates, self.w_hh.data_ptr()),
            *(self.direct_h.data_ptr(), self.dc, self.dh0),
            *(here, later, later_rows, sums),
            *(self.T, self.B, H, t0, self.count(t0), first, last),
            *self.ragged,
            *self.resets,
        )

    def members(self, parts):
        """How many threads take the steps together."""
        return min(parts, crews.members(self.B, self.shape, self.H, self.shape.panels(self.H)))

    def count(self, t0):
        return max(0, min(self.length, self.T - t0))

    def gradient_arguments(self, t0, here, panels, sums, slabs, wants_dx, wants_dw):
        """`scan_gradients` on the chunk from step t0, the weights' for a range of slabs."""
        dx = (0, 0, 0, 0)
        if wants_dx:
            dx = (*self.rows.place(self.dx, self.d), self.w_ih.data_ptr())
        weights = [w.data_ptr() for w in self.dweights] if wants_dw else []
        weights += [0] * (4 - len(weights))
        return (
            *(here, self.T, self.B, t0, self.count(t0)),
            *self.rows.place(self.x, self.d),
            *(self.states[0], self.rows.stride * self.H, self.h0),
            *dx,
            self.d,
            *weights,
            int(t0 == self.chunks()[0]),
            *(panels, sums, self.I, self.H, *slabs),
            *self.ragged,
        )


def _run_backward(directions, gates):
    """All chunks of all directions: on one thread chunk by chunk, so that the gate gradients stay in the cache.

    On more threads, first the steps, by rows, then the products, by chunks and slabs. Every sum has the same order.
    """
    one = directions[0]
    work = 4.0 * one.rows.count * one.shape.gates * one.H * (one.I + one.H) * len(directions)
    parts = parts_for(work)
    for direction in directions:
        if parts == 1:
            _chunk_by_chunk(direction, gates_of(direction, gates))
        else:
            _phase_by_phase(direction, gates_of(direction, gates), parts)


def _chunk_by_chunk(direction, gates):
    size, elements = direction.size, direction.gradient_elements()
    steps = compiled().kernel("scan_backward", cell=direction.cell, size=size)
    products = compiled().kernel("scan_gradients", cell=direction.cell, size=size)
    panel_elements = direction.panel_elements()
    sum_elements = direction.sum_elements()
    memory = workspace(2 * elements + panel_elements + sum_elements + gates.elements(1), direction.x.dtype)
    base = memory.data_ptr()
    panels = base + size * 2 * elements
    sums = panels + size * panel_elements
    gate_memory = sums + size * sum_elements
    slabs = (0, direction.slabs)
    wants_dx, wants_dw = direction.dx is not None, direction.needs_dw
    for index, t0 in enumerate(direction.chunks()):
        here, later = (base + size * elements * (parity % 2) for parity in (index, index + 1))
        steps(*direction.step_arguments(t0, gates.ready(t0, gate_memory, 1), here, later, sums, 0, direction.B), 0, 0)
        if wants_dx or wants_dw:
            products(*direction.gradient_arguments(t0, here, panels, sums, slabs, wants_dx, wants_dw))


def _phase_by_phase(direction, gates, parts):
    size = direction.size
    steps = compiled().kernel("scan_backward", cell=direction.cell, size=size)
    products = compiled().kernel("scan_gradients", cell=direction.cell, size=size)
    chunks = list(direction.chunks())
    members = direction.members(parts)
    rows = row_ranges(direction.B, 4, 1 if members > 1 else parts, direction.rows.lengths)
    chunk_ranges = ranges(len(chunks), parts) if direction.dx is not None else []
    slab_ranges = ranges(direction.slabs, parts) if direction.needs_dw else []
    sum_elements, panel_elements = direction.sum_elements(), direction.panel_elements()
    tasks = len(chunk_ranges) * sum_elements + len(slab_ranges) * panel_elements
    row_elements = direction.slabs * direction.shape.gradient_row
    elements = direction.rows.count * row_elements
    tasks = max(tasks, sum_elements, members * direction.B * direction.shape.panel_columns)
    memory = workspace(elements + tasks + gates.elements(parts), direction.x.dtype)
    base = memory.data_ptr()
    at = {t0: base + size * row_elements * direction.chunk(t0)[0] for t0 in chunks}
    scratch = base + size * elements

    def take_steps(ready, first, last):
        for t0, saved in ready.items():
            later = at.get(t0 + direction.length, 0)
            arguments = direction.step_arguments(t0, saved, at[t0], later, scratch, first, last)
            if members > 1:
                crews.run(partial(steps, *arguments), members, crews.patience(direction.shape, direction.H))
            else:
                steps(*arguments, 0, 0)

    def into_x(index, first, last):
        sums = scratch + size * sum_elements * index
        for t0 in chunks[first:last]:
            products(*direction.gradient_arguments(t0, at[t0], 0, sums, (0, 0), True, False))

    def into_weights(index, first, last):
        panels = scratch + size * (sum_elements * len(chunk_ranges) + panel_elements * index)
        for t0 in chunks:
            products(*direction.gradient_arguments(t0, at[t0], panels, 0, (first, last), False, True))

    for group in [chunks] if gates.together else [[t0] for t0 in chunks]:
        ready = {t0: gates.ready(t0, scratch + size * tasks, parts) for t0 in group}
        threads.run([partial(take_steps, ready, *r) for r in rows])
    products_of_x = [partial(into_x, i, *r) for i, r in enumerate(chunk_ranges)]
    threads.run(products_of_x + [partial(into_weights, i, *r) for i, r in enumerate(slab_ranges)])
