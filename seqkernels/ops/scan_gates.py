"""Where the backward of a scan on a CPU finds the gates of a chunk of steps: kept, or made anew one chunk at a time."""

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
    """Saved by the forward. The chunks are ready at any time."""

    together = True

    def __init__(self, direction, gates):
        self.direction, self.row = direction, direction.size * direction.slabs * direction.shape.gate_row
        self.start = gates + direction.d * self.row * prod(direction.rows.kept)

    def elements(self, parts):
        """Of scratch memory."""
        return 0

    def ready(self, t0, base, parts):
        """The address of the gates of the chunk from step t0, with scratch memory from base on for that chunk alone."""
        return self.start + self.row * self.direction.chunk(t0)[0]


class Anew:
    """Made of the kept states by `scan_gates`, split over threads by slabs."""

    together = False

    def __init__(self, direction):
        self.direction, rows = direction, direction.length * direction.B
        self.weights = PackedWeights(direction.cell, direction.weights)
        self.gate_elements = rows * direction.slabs * direction.shape.gate_row
        self.scratch_elements = 2 * CELLS[direction.cell].states * rows * direction.H

    def elements(self, parts):
        return self.gate_elements + parts * self.scratch_elements

    def ready(self, t0, base, parts):
        one = self.direction
        make = compiled().kernel("scan_gates", cell=one.cell, size=one.size)
        scratch = base + one.size * self.gate_elements
        calls = []
        for i, slabs in enumerate(ranges(one.slabs, parts)):
            place = scratch + one.size * self.scratch_elements * i
            calls.append((*self._arguments(t0, base, slabs), place))
        threads.run(make, calls)
        return base

    def _arguments(self, t0, gates, slabs):
        one, step = self.direction, self.direction.rows.stride * self.direction.H
        return (
            *one.rows.place(one.x, one.d),
            *self.weights.directions[0],
            *(one.states[0], step, one.h0),
            *((one.states[1], step, one.c0) if one.c0 else (0, 0, 0)),
            *(gates, one.T, one.B, one.I, one.H, t0, one.count(t0), *slabs),
            *(*one.ragged, one.resets[0]),
        )
