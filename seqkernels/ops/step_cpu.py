"""One time step of one layer in one direction on a CPU, with as little as possible between the caller and the kernel.

Trusts its arguments, as `scan_cpu` does: plain tensors of the packed weights' dtype and sizes.
"""

import ctypes
from operator import is_, itemgetter

import torch

from seqkernels.kernels.cells import CELLS

from .._check import overridden
from .compiled import compiled
from .guards import guard
from .packed import cached


class Step:
    """A step of a layer whose packed weights are kept: `kernel(plan, x, h, c, y, h_n, c_n)`, all addresses.

    False where the weights' contents have changed: nothing has been done then. x's B rows are `x_row` elements apart;
    the rest as in kernels/cpu/step.py.
    """

    def __init__(self, cell, kept, dtype, x_row, B):
        I, H = kept.checked[:2]
        numbers = (kept.contents, *kept.tensors, *kept.packed.directions[0], x_row, B, I, H, 0)
        self._memory = kept, (ctypes.c_int64 * len(numbers))(*numbers)
        self.plan = ctypes.addressof(self._memory[1])
        self.kernel = compiled().kernel("step", cell=cell, size=dtype.itemsize)


class InPlace:
    """Steps of one layer over fixed memory: h, c and y (B, H), h and c moved on in place; `y` is the address of y."""

    def __init__(self, cell, kept, h, *c_y):
        c, y = c_y if len(c_y) == 2 else (h, *c_y)
        self._cell, self._kept, self._tensors = cell, kept, (h, c, y)
        self._step, self.y = Step(cell, kept, h.dtype, kept.checked[0], len(h)), y.data_ptr()
        h, c = h.data_ptr(), c.data_ptr()
        self._states, self._ends = (h, c), (self.y, h, c)

    def __call__(self, x, weights):
        """One step from dense rows at address x, or False, nothing done, where the weights have changed."""
        if cached(self._cell, weights) is not self._kept or not self._kept.same(weights):
            return False
        return self._step.kernel(self._step.plan, x, *self._states, *self._ends)


class Plan:
    """A module's call with one step, for calls like the one that it is made from: weights (by name), x, h and c."""

    def __init__(self, cell, kept, weights, x, x_row, B, h, c, y):
        """y: a tensor like the first result where it is not h_n itself, or None."""
        self._kept, self._y, self._c = kept, y, CELLS[cell].states == 2
        self._read, self._weights = itemgetter(*weights), tuple(weights.values())
        self._zeros = torch.zeros_like(h)
        c = torch.empty_like(h) if c is None or c is h else c
        self._alike, self._alike_with_c = guard(x, h, *self._weights), guard(x, h, c, *self._weights)
        self._records = any(t.requires_grad for t in (x, h, c, *self._weights))
        self._step = Step(cell, kept, x.dtype, x_row, B)

    def __call__(self, parameters, x, hx):
        """What the module with these parameters returns, or None where this call is another or a weight has changed."""
        if hx is None:
            h = c = self._zeros
        elif not self._c:
            h = c = hx
        elif type(hx) in (tuple, list) and len(hx) == 2:
            h, c = hx
        else:
            return None
        try:
            weights = self._read(parameters)
        except KeyError:
            return None
        alike = self._alike(x, h, *weights) if c is h else self._alike_with_c(x, h, c, *weights)
        if (
            not alike
            or not all(map(is_, weights, self._weights))
            or not self._kept.same(weights)
            or (self._records and torch.is_grad_enabled())
            or overridden()
        ):
            return None
        return self._results(x, h, c)

    def __reduce__(self):
        return type(None), ()  # a module's copy, or what is pickled of it, has no plan

    def _results(self, x, h, c):
        h_n = torch.empty_like(h)
        y = h_n if self._y is None else torch.empty_like(self._y)
        c_n = torch.empty_like(c) if self._c else h_n
        step, states = self._step, (h.data_ptr(), c.data_ptr())
        if not step.kernel(step.plan, x.data_ptr(), *states, y.data_ptr(), h_n.data_ptr(), c_n.data_ptr()):
            return None
        end = (h_n, c_n) if self._c else h_n
        return end if self._y is None else (y, end)
