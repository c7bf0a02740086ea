"""One time step of one layer in one direction on a CPU, with as little as possible between the caller and the kernel.

Trusts its arguments, as `scan_cpu` does: plain tensors of the packed weights' dtype and sizes.
"""

from functools import cache

import torch

from .compiled import compiled
from .workspace import workspace

FEW_ROWS = 16  # from here on a scan's work is worth splitting by rows: `scan_cpu.forward`


@cache
def _kernel(cell, size, H):
    """The scan kernel and the elements of gates that a row of one step needs."""
    shape = compiled().layout(cell, size, False)
    return compiled().kernel("scan_forward", cell=cell, size=size, save=False), shape.slabs(H) * shape.gate_row


def step(cell, packed, x, x_row, B, h, c, y, h_n, c_n):
    """Writes h' into y (B, H) and h_n (B, H), which may be the same, and c' into c_n (B, H), which may be c.

    x: B rows of I elements, x_row elements apart; h, c (B, H); all contiguous but for x's rows; c and c_n None
    without c.
    """
    I, H = packed.checked[:2]
    scan, row = _kernel(cell, x.element_size(), H)
    gates = workspace(row * B, x.dtype).data_ptr()
    c, c_n = (0, 0) if c is None else (c.data_ptr(), c_n.data_ptr())
    states = (h.data_ptr(), c, *(y.data_ptr(), 0, H) * 2, c_n, 0)
    scan(x.data_ptr(), 0, x_row, *packed.directions[0], *states, gates, 0, 1, B, I, H, 0, B, h_n.data_ptr())


class Steps:
    """Steps of one layer over fixed memory: `take(address of x)` writes y (B, H) and moves h and c (B, H) on, in
    place."""

    def __init__(self, cell, packed, I, h, c, y):
        B, H = h.shape
        self._scan, row = _kernel(cell, h.dtype.itemsize, H)
        self._kept = (packed, h, c, y, torch.empty(row * B, dtype=h.dtype))
        c = 0 if c is None else c.data_ptr()
        gates = self._kept[-1].data_ptr()
        states = (h.data_ptr(), c, *(y.data_ptr(), 0, H) * 2, c, 0)
        self._arguments = (*packed.directions[0], *states, gates, 0, 1, B, I, H, 0, B, h.data_ptr())

    def take(self, x, x_row):
        """One step from B rows of I elements at address x, x_row elements apart."""
        self._scan(x, 0, x_row, *self._arguments)
