"""The scan on a CPU, backward: allocates, packs, splits over threads, and calls the kernel."""

from functools import lru_cache, partial
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
    dh0, dc0 = rows.final_gradient(_to(wide, h0), _to(wide, dh_n)), None
    if c0 is not None:  # carried from step to step in place
        c0 = _to(wide, c0)
        dc0 = torch.zeros_like(c0) if dc_n is None else dc_n.to(wide, copy=True, memory_format=torch.contiguous_format)
    resets = reset_states(rows, h0, c0, ragged)
    dresets = [None if s is None else torch.zeros_like(s, dtype=wide) for s in resets]
    shared = (pack, rows, dy, dh_n, x, h0, c0, states, dx, dh0, dc0, needs_dw, resets, dresets)
    results = [_Backward(cell, d, group, *shared) for d, group in enumerate(groups)]
    for result in results:
        result.run(gates)
    dweights = [_to(dtype, g) for r in results for g in r.dweights] if needs_dw else None
    made = [dh0, dc0, *(made for made, given in zip(dresets, ragged[2:4]) if given is not None)]
    dh0, dc0, *asked = (_to(dtype, rows.unsort(s)) for s in made)
    return rows.unpack(dx) if needs_dx else None, dh0, dc0, dweights, *asked


def _to(dtype, tensor):
    """The tensor, which may be None, in the dtype: it itself where that is its own, sooner than `to` would tell."""
    return tensor if tensor is None or tensor.dtype is dtype else tensor.to(dtype)


def _pack(cell, groups, d, operand):
    return pack_backward(cell, groups[d][operand == "h"], operand)


class Sizes:
    """What follows from the sizes of a direction's backward; `count` rows are computed."""

    def __init__(self, cell, dtype, T, B, I, H, count):
        self.size, self.stored = size, stored = widths(dtype)
        self.shape = shape = compiled().layout(cell, size, True, stored)
        self.slabs, self.length = shape.slabs(H), compiled().steps(B)  # steps of a chunk
        self.chunks, rows = -(-T // self.length), min(T, self.length) * B
        self.kernel = compiled().kernel("scan_backward", cell=cell, size=size, stored=stored)
        self.operations = 4.0 * count * shape.gates * H * (I + H)
        self.members = crews.members(B, shape, H, shape.panels(H))
        self.waits = crews.waits(shape, H, self.operations)
        # Lanes of scratch memory: for the gates' gradients; then for each member.
        self.shared = 2 * rows * self.slabs * shape.gradient_row
        self.each = compiled().row_scratch(shape)(rows, I, H)

    def split(self):
        """(threads for a chunk, members of the crew, 1 where they share a step's rows and not its panels)."""
        parts = parts_for(self.operations)
        members = min(parts, self.members)
        return (parts, members, 0) if members > 1 else (parts, min(parts, compiled().crew.MOST), 1)

    def run(self, arguments, members):
        """The kernel with its arguments up to those of a crew, by so many threads."""
        if members > 1:
            crews.run(self.kernel, arguments, members, self.waits)
        else:
            self.kernel(*arguments, 0, 0)


@lru_cache(maxsize=256)
def sizes_of(*given):
    """The Sizes."""
    return Sizes(*given)


class _Backward:
    """One direction's backward: its memory, and the kernel's arguments."""

    def __init__(
        self, cell, d, weights, pack, rows, dy, dh_n, x, h0, c0, states, dx, dh0, dc, needs_dw, resets, dresets
    ):  # fmt: skip
        self.cell, self.d, self.weights, self.rows = cell, d, weights, rows
        self.T, self.B, self.I, self.H = rows.T, rows.B, x.shape[-1], h0.shape[2]
        self.sizes = sizes = sizes_of(cell, x.dtype, self.T, self.B, self.I, self.H, rows.count)
        self.x, self.dx, self.needs_dw = x, dx, needs_dw
        self.h0, self.c0, self._dh0, self._dc = (address(t, d) for t in (h0, c0, dh0, dc))
        state = prod(rows.kept) * self.H  # elements of all steps
        first, D = states.data_ptr(), len(h0)
        self.states = first + sizes.stored * d * state, first + sizes.size * (D + d) * state
        self._zeros = torch.zeros_like(dh0[d])  # zeros of any dtype
        self._direct_h = torch.zeros_like(dh0[d]) if sizes.shape.has_direct_h else self._zeros  # which nobody writes
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
            new = torch.empty_like if self.T else torch.zeros_like
            self.dweights = [new(w, dtype=dh0.dtype, memory_format=torch.contiguous_format) for w in weights]

    def run(self, gates):
        """All chunks, on as many threads as their work is worth: they share each step's panels, or its rows."""
        sizes, saved = self.sizes, gates_of(self, gates)
        parts, members, by_rows = sizes.split()
        counts = [sizes.shared, *(members * each for each in sizes.each)]
        memory = workspace(sum(counts) + saved.elements(parts), computed(self.x.dtype))
        *places, rest = accumulate((sizes.size * count for count in counts), initial=memory.data_ptr())
        given, made = self._inputs(), self._outputs()
        for first, last, *gates in saved.ready(rest, parts):
            numbers = self.T, self.B, self.I, self.H, first, last
            scratch = places[0], 0, *places[1:]
            arguments = (*given, *gates, *made, *scratch, *numbers, *self.ragged, *self.resets, by_rows)
            sizes.run(arguments, members)

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
