"""Where the backward of a scan on a CPU finds the gates: kept, or made anew one chunk of steps at a time."""

from math import prod

from seqkernels.kernels.cells import CELLS

from . import threads
from .compiled import compiled
from .packing import PackedWeights
from .splits import ranges


def gates_of(direction, gates):
    """The gates of a direction's backward, from what the forward saved of them, if anything."""
    if gates is not None and gates.numel():
        return Kept(direction, gates.data_ptr())
    return Anew(direction) if CELLS[direction.cell].saved else Kept(direction, 0)  # no value of it is read


class Kept:
    """Saved by the forward: all chunks are ready."""

    def __init__(self, direction, gates):
        sizes = direction.sizes
        row = sizes.size * sizes.slabs * sizes.shape.gate_row
        self._start, self._chunks = gates + direction.d * row * prod(direction.rows.kept), sizes.chunks

    def elements(self, parts):
        """Of scratch memory."""
        return 0

    def ready(self, base, parts):
        """(first chunk, last chunk, address of the gates, whether they are those of all chunks), the last chunks first,
        with scratch memory from base on."""
        return [(0, self._chunks, self._start, 1)]


class Anew:
    """Made of the kept states by `scan_gates`, split over threads by slabs."""

    def __init__(self, direction):
        self.direction, self.sizes = direction, direction.sizes
        rows = self.sizes.length * direction.B
        self.weights = PackedWeights(direction.cell, direction.weights)
        self.gate_elements = rows * self.sizes.slabs * self.sizes.shape.gate_row
        self.scratch_elements = 2 * CELLS[direction.cell].states * rows * direction.H

    def elements(self, parts):
        return self.gate_elements + parts * self.scratch_elements

    def ready(self, base, parts):
        cell, sizes = self.direction.cell, self.sizes
        make = compiled().kernel("scan_gates", cell=cell, size=sizes.size, stored=sizes.stored)
        scratch, each = base + sizes.size * self.gate_elements, sizes.size * self.scratch_elements
        for chunk in reversed(range(sizes.chunks)):
            slabs = enumerate(ranges(sizes.slabs, parts))
            threads.run(make, [(*self._arguments(chunk, base, part), scratch + each * i) for i, part in slabs])
            yield chunk, chunk + 1, base, 0

    def _arguments(self, chunk, gates, slabs):
        one, length = self.direction, self.sizes.length
        step, t0 = one.rows.stride * one.H, chunk * length
        return (
            *one.rows.place(one.x, one.d),
            *self.weights.directions[0],
            *(one.states[0], step, one.h0),
            *((one.states[1], step, one.c0) if one.c0 else (0, 0, 0)),
            *(gates, one.T, one.B, one.I, one.H, t0, min(length, one.T - t0), *slabs),
            *(*one.ragged, one.resets[0]),
        )
