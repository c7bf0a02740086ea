"""One time step of one layer in one direction on a CPU, with as little as possible between the caller and the kernel.

Trusts its arguments, as `scan_cpu` does: plain tensors of the packed weights' dtype and sizes.
"""

import ctypes

from .compiled import compiled, widths
from .packed import cached


class Step:
    """A step of a layer whose packed weights are kept: `kernel(plan, x, h, c, y, h_n, c_n)`, all addresses.

    False where the weights' contents have changed: nothing has been done then. x's B rows are `x_row` elements apart;
    the rest as in kernels/cpu/step.py.
    """

    def __init__(self, kept, dtype, x_row, B):
        I, H = kept.checked[:2]
        numbers = (kept.contents, *kept.tensors, *kept.packed.directions[0], x_row, B, I, H, 0)
        self._memory = kept, (ctypes.c_int64 * len(numbers))(*numbers)
        self.plan = ctypes.addressof(self._memory[1])
        size, stored = widths(dtype)
        parameters = {"cell": kept.cell, "size": size, "stored": stored, "weight": kept.packed.weight}
        self.kernel = compiled().kernel("step", **parameters)

    def __call__(self, *addresses):
        """A step between the addresses of x, h, c, y, h_n and c_n."""
        return self.kernel(self.plan, *addresses)


class InPlace:
    """Steps of one layer over fixed memory: h, c and y (B, H), h and c moved on in place; `y` is the address of y."""

    def __init__(self, cell, kept, h, *c_y):
        c, y = c_y if len(c_y) == 2 else (h, *c_y)
        self._cell, self._kept, self._tensors = cell, kept, (h, c, y)
        self._step, self.y = Step(kept, h.dtype, kept.checked[0], len(h)), y.data_ptr()
        h, c = h.data_ptr(), c.data_ptr()
        self._states, self._ends = (h, c), (self.y, h, c)

    def __call__(self, x, weights):
        """One step from dense rows at address x, or False, nothing done, where the weights have changed."""
        if cached(self._cell, weights, self._kept.form) is not self._kept or not self._kept.same(weights):
            return False
        return self._step.kernel(self._step.plan, x, *self._states, *self._ends)
