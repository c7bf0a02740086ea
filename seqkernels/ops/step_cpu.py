"""One time step of one layer in one direction on a CPU, with as little as possible between the caller and the kernel.

Trusts its arguments, as `scan_cpu` does: plain tensors of the packed weights' dtype and sizes.
"""

import ctypes
from functools import partial

from . import threads
from .compiled import compiled, widths
from .packed import cached
from .splits import parts_for, ranges, worth_threads

_BYTES_WORTH = 2.6  # operations that a byte of weights counts for: half of what the third cache holds fits the second


class Step:
    """A step of a layer whose packed weights are kept: `run(x, h, c, y, h_n, c_n)`, all addresses.

    False where the weights' contents have changed: nothing has been done then. x's B rows are `x_row` elements apart;
    the rest as in kernels/cpu/step.py, but that h_n may always be h.
    """

    def __init__(self, kept, dtype, x_row, B):
        I, H = kept.checked[:2]
        (size, stored), weight = widths(dtype), kept.packed.weight
        shape = compiled().layout(kept.cell, size, False)
        self._kept, self._slabs, self._bytes = kept, shape.slabs(H), stored * B * H
        self._numbers = (kept.contents, *kept.tensors, *kept.packed.directions[0], x_row, B, I, H)
        self._kernel = compiled().kernel("step", cell=kept.cell, size=size, stored=stored, weight=weight)
        self._plans = {}
        (plan,) = self._plans_of(1)
        self._alone, weights = partial(self._kernel, plan), shape.gates * H * (I + H)
        self._work = max(2.0 * B * weights, _BYTES_WORTH * weight * weights)
        self.run = self._shared if worth_threads(self._work) else self._alone

    def _plans_of(self, parts):
        """The addresses of the plans of so many threads, or fewer."""
        if parts not in self._plans:
            shares = [(*self._numbers, *share, 0) for share in ranges(self._slabs, parts)]
            self._plans[parts] = [(ctypes.c_int64 * len(numbers))(*numbers) for numbers in shares]
        return [ctypes.addressof(plan) for plan in self._plans[parts]]

    def _shared(self, x, h, c, y, h_n, c_n):
        """`run` where threads, if there are several, share the weights."""
        parts = parts_for(self._work)
        if parts == 1:
            return self._alone(x, h, c, y, h_n, c_n)
        if not self._kept.unchanged():
            return False
        inside = y if h_n == h else h_n  # nobody writes to h, which all read
        threads.run(self._kernel, [(plan, x, h, c, y, inside, c_n) for plan in self._plans_of(parts)])
        if h_n == h:
            ctypes.memmove(h_n, y, self._bytes)
        return True


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
        return self._step.run(x, *self._states, *self._ends)
