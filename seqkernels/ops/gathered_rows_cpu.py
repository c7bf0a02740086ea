"""The gradients of weights that single steps share, on a CPU: one product for the rows of several steps.

A product for each step would read and write all of the weights' gradients for the few terms of its rows.
"""

import ctypes
from functools import lru_cache

import torch

from . import threads
from .compiled import compiled, computed, widths
from .splits import parts_for, ranges
from .workspace import workspace


class GatheredRows:
    """Rows of gate gradients, of x and of h before the step, as many as there is room for; and the sums so far."""

    def __init__(self, cell, weights):
        """weights: w_ih (G H, I), w_hh (G H, H) and, or not, b_ih, b_hh (G H)."""
        self._weights, self._dtype = weights, weights[0].dtype
        self._sizes = _sizes_of(cell, self._dtype, weights[0].shape[1], weights[1].shape[1])
        self._room, self._count, self._sums = 0, 0, None

    def take(self, B, x, h):
        """Keeps B rows of x (*, I), and of h before the step, contiguous. Gives the address for their gate gradients,
        which are to be written before the next call, and the rows that a slab of them takes."""
        if self._count + B > self._room:
            self._sum()
            if self._room < B:
                self._room = compiled().steps(B) * B
                self._memory = torch.empty(self._room * sum(self._sizes.row), dtype=torch.uint8)
        first, self._count = self._count, self._count + B
        for rows, place, width in zip((x, h), self._places()[1:], self._sizes.row[1:]):
            rows = rows if rows.is_contiguous() else rows.contiguous()
            ctypes.memmove(place + width * first, rows.data_ptr(), width * B)
        return self._memory.data_ptr() + self._sizes.slab_row * first, self._room

    def finish(self):
        """The gradients of the weights."""
        self._sum()
        return [s.to(self._dtype) for s in self._sums]

    def _places(self):
        """The addresses of the gate gradients, of the rows of x and of those of h."""
        gradients, first = self._sizes.row[0], self._memory.data_ptr()
        x = first + self._room * gradients
        return first, x, x + self._room * self._sizes.row[1]

    def _sum(self):
        """Adds the products of what is kept, and keeps nothing of it."""
        if not self._count:
            return
        adds, sizes, rows = self._sums is not None, self._sizes, self._count
        if not adds:
            kind, dense = computed(self._dtype), torch.contiguous_format
            self._sums = [torch.empty_like(w, dtype=kind, memory_format=dense) for w in self._weights]
        parts = ranges(sizes.slabs, parts_for(sizes.row_operations * rows))
        packed, paired = sizes.scratch(rows, sizes.I, sizes.H)[1:]
        memory = workspace(len(parts) * (packed + paired), computed(self._dtype))
        gradients, x, h = self._places()
        sums = ([s.data_ptr() for s in self._sums] + [0, 0])[:4]
        given, calls, lane = (gradients, self._room, rows, x, h, *sums, int(adds)), [], sizes.shape.size
        for i, part in enumerate(parts):
            scratch = memory.data_ptr() + lane * (packed + paired) * i
            calls.append((*given, scratch, scratch + lane * packed, sizes.I, sizes.H, *part))
        threads.run(sizes.kernel, calls)
        self._count = 0


class _Sizes:
    """What follows from the sizes of a layer."""

    def __init__(self, cell, dtype, I, H):
        size, stored = widths(dtype)
        self.I, self.H = I, H
        self.shape = shape = compiled().layout(cell, size, True, stored)
        self.scratch = compiled().row_scratch(shape)
        self.kernel = compiled().kernel("weight_rows", cell=cell, size=size, stored=stored)
        self.slabs, self.slab_row = shape.slabs(H), stored * shape.gradient_row  # bytes of a row in a slab
        self.row = self.slabs * self.slab_row, stored * I, stored * H  # bytes of a row: of gate gradients, of x, of h
        self.row_operations = 2.0 * shape.gates * H * (I + H)


@lru_cache(maxsize=256)
def _sizes_of(*given):
    return _Sizes(*given)
