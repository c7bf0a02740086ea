"""The scan on a CPU, backward: the steps in reverse, chunk by chunk, and the products that follow."""

from functools import partial

import torch

from . import threads
from .compiled import compiled
from .packing import pack_backward, per_direction
from .splits import parts_for, ranges, row_ranges
from .workspace import on_huge_pages, workspace


def backward(cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, batch_first, needs_dx, needs_dw):
    """dx, dh0, dc0 and the list of the weights' gradients, from the gradients of y, h_n and c_n (each may be None).

    Shapes and strides as in `forward`; states and gates are only read. What is not needed, or does not exist, is None.
    """
    D = h0.shape[0]
    dx = on_huge_pages(x.new_empty(x.shape)) if needs_dx else None
    if dy is not None and dy.stride(2) != 1:
        dy = dy.contiguous()
    groups = per_direction(cell, weights)
    shared = (dy, dh_n, x, h0, c0)
    dh0, dc0 = torch.empty_like(h0), None
    if c0 is not None:  # carried from step to step in place
        dc0 = torch.zeros_like(c0) if dc_n is None else dc_n.clone(memory_format=torch.contiguous_format)
    outputs = (dx, dh0, dc0, needs_dw)
    results = [_Backward(cell, d, *shared, groups[d], states, gates, batch_first, *outputs) for d in range(D)]
    _run_backward(results)
    return dx, dh0, dc0, [g for r in results for g in r.weight_gradients()] if needs_dw else None


class _Backward:
    """One direction's backward: its memory, and the kernels' arguments chunk by chunk."""

    def __init__(self, cell, d, dy, dh_n, x, h0, c0, weights, states, gates, batch_first, dx, dh0, dc, needs_dw):
        self.cell, self.d, self.weights = cell, d, weights
        self.time = 1 if batch_first else 0
        self.T, self.B, self.I, self.H = x.shape[self.time], h0.shape[1], x.shape[2], h0.shape[2]
        self.size = x.element_size()
        self.shape = compiled().layout(cell, self.size, True)
        self.x, self.dx, self.needs_dw = x, dx, needs_dw
        self.h0, self.c0, self.dh0, self.dc = (None if t is None else t[d] for t in (h0, c0, dh0, dc))
        self.states, self.gates = states[:, d], gates
        self.direct_h, self.zeros = torch.zeros_like(self.h0), torch.zeros_like(self.h0)
        last = self.zeros if dh_n is None else dh_n[d]
        self.dy = (self.zeros.data_ptr(), 0, self.H)
        if dy is not None:
            self.dy = self.steps_of(dy, d * self.H)
            step = dy.select(self.time, 0 if d else self.T - 1)[:, d * self.H : (d + 1) * self.H]
            last = step if dh_n is None else step + last
        self.dy_last = last.contiguous()
        self.slabs = self.shape.slabs(self.H)
        self.length = min(self.T, compiled().steps(self.B))
        self.w_hh = pack_backward(cell, weights[1], "h")
        self.w_ih = pack_backward(cell, weights[0], "x") if dx is not None else None
        if needs_dw:
            self.dw_ih, self.dw_hh = (torch.empty(w.shape, dtype=w.dtype) for w in weights[:2])
            self.db = x.new_empty(self.slabs * self.shape.gradient_row)

    def steps_of(self, tensor, column=0):
        """(address, stride of a step, stride of a row) of a (T, B, ...) tensor in this direction's order of steps."""
        step = tensor.stride(self.time)
        start = tensor.data_ptr() + self.size * column
        if self.d:
            return start + self.size * step * (self.T - 1), -step, tensor.stride(1 - self.time)
        return start, step, tensor.stride(1 - self.time)

    def shifted(self, tensor, t):
        """The same from step t on."""
        start, step, row = self.steps_of(tensor)
        return start + self.size * step * t, step, row

    def chunks(self):
        return range((self.T - 1) // self.length * self.length, -1, -self.length)

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

    def step_arguments(self, t0, here, later, sums, first, last):
        """`scan_backward` on the chunk from step t0: gradients go to `here`; `later` are the next chunk's."""
        size, B, H = self.size, self.B, self.H
        c = (0, 0, 0) if self.c0 is None else (self.c0.data_ptr(), self.states[1].data_ptr(), B * H)
        direction = self.gates.data_ptr() + size * self.d * self.T * B * self.slabs * self.shape.gate_row
        return (
            *self.dy,
            self.dy_last.data_ptr(),
            *(self.states[0].data_ptr(), B * H, self.h0.data_ptr()),
            *c,
            direction + size * t0 * B * self.slabs * self.shape.gate_row,
            self.w_hh.data_ptr(),
            self.direct_h.data_ptr(),
            0 if self.dc is None else self.dc.data_ptr(),
            self.dh0.data_ptr(),
            *(here, later, self.count(t0 + self.length) * B, sums),
            *(self.T, B, H, t0, self.count(t0), first, last),
        )

    def count(self, t0):
        return max(0, min(self.length, self.T - t0))

    def gradient_arguments(self, t0, here, panels, sums, slabs, wants_dx, wants_dw):
        """`scan_gradients` on the chunk from step t0, the weights' for a range of slabs."""
        step = self.B * self.H
        h = (self.states[0].data_ptr() + self.size * step * (t0 - 1), step, self.H)
        dx = (0, 0, 0, 0)
        if wants_dx:
            dx = (*self.shifted(self.dx, t0), self.w_ih.data_ptr())
        weights = (self.dw_ih.data_ptr(), self.dw_hh.data_ptr(), self.db.data_ptr()) if wants_dw else (0, 0, 0)
        return (
            *(here, self.B, self.count(t0)),
            *self.shifted(self.x, t0),
            *h,
            self.h0.data_ptr() if t0 == 0 else 0,
            *dx,
            self.d,
            *weights,
            int(t0 == self.chunks()[0]),
            *(panels, sums, self.I, self.H, *slabs),
        )

    def weight_gradients(self):
        """The gradients of this direction's weights, in their order."""
        gradients = [self.dw_ih, self.dw_hh]
        if len(self.weights) == 4:
            shape = self.shape
            sums = self.db.view(self.slabs, shape.blocks, shape.slots, shape.lanes)
            rows = sums.permute(2, 0, 1, 3).reshape(shape.slots, -1)[:, : self.H].unbind()
            gradients += [torch.cat([rows[slot] for slot in slots]) for slots in (shape.x_slots, shape.u_slots)]
        return gradients


def _run_backward(directions):
    """All chunks of all directions: on one thread chunk by chunk, so that the gate gradients stay in the cache.

    On more threads, first the steps, by rows, then the products, by chunks and slabs. Every sum has the same order.
    """
    one = directions[0]
    work = 4.0 * one.T * one.B * one.shape.gates * one.H * (one.I + one.H) * len(directions)
    parts = parts_for(work)
    for direction in directions:
        if parts == 1:
            _chunk_by_chunk(direction)
        else:
            _phase_by_phase(direction, parts)


def _chunk_by_chunk(direction):
    size, elements = direction.size, direction.gradient_elements()
    steps = compiled().kernel("scan_backward", cell=direction.cell, size=size)
    products = compiled().kernel("scan_gradients", cell=direction.cell, size=size)
    panel_elements = direction.panel_elements()
    memory = workspace(2 * elements + panel_elements + direction.sum_elements(), direction.x.dtype)
    base = memory.data_ptr()
    panels = base + size * 2 * elements
    sums = panels + size * panel_elements
    slabs = (0, direction.slabs)
    wants_dx, wants_dw = direction.dx is not None, direction.needs_dw
    for index, t0 in enumerate(direction.chunks()):
        here, later = (base + size * elements * (parity % 2) for parity in (index, index + 1))
        steps(*direction.step_arguments(t0, here, later, sums, 0, direction.B))
        if wants_dx or wants_dw:
            products(*direction.gradient_arguments(t0, here, panels, sums, slabs, wants_dx, wants_dw))


def _phase_by_phase(direction, parts):
    size, elements = direction.size, direction.gradient_elements()
    steps = compiled().kernel("scan_backward", cell=direction.cell, size=size)
    products = compiled().kernel("scan_gradients", cell=direction.cell, size=size)
    chunks = list(direction.chunks())
    rows = row_ranges(direction.B, 4, parts)
    chunk_ranges = ranges(len(chunks), parts) if direction.dx is not None else []
    slab_ranges = ranges(direction.slabs, parts) if direction.needs_dw else []
    sum_elements, panel_elements = direction.sum_elements(), direction.panel_elements()
    tasks = len(chunk_ranges) * sum_elements + len(slab_ranges) * panel_elements
    memory = workspace(len(chunks) * elements + max(tasks, sum_elements), direction.x.dtype)
    base = memory.data_ptr()
    at = {t0: base + size * elements * (t0 // direction.length) for t0 in chunks}
    scratch = base + size * elements * len(chunks)

    def take_steps(first, last):
        for t0 in chunks:
            steps(*direction.step_arguments(t0, at[t0], at.get(t0 + direction.length, 0), scratch, first, last))

    def into_x(index, first, last):
        sums = scratch + size * sum_elements * index
        for t0 in chunks[first:last]:
            products(*direction.gradient_arguments(t0, at[t0], 0, sums, (0, 0), True, False))

    def into_weights(index, first, last):
        panels = scratch + size * (sum_elements * len(chunk_ranges) + panel_elements * index)
        for t0 in chunks:
            products(*direction.gradient_arguments(t0, at[t0], panels, 0, (first, last), False, True))

    threads.run([partial(take_steps, *r) for r in rows])
    products_of_x = [partial(into_x, i, *r) for i, r in enumerate(chunk_ranges)]
    threads.run(products_of_x + [partial(into_weights, i, *r) for i, r in enumerate(slab_ranges)])
