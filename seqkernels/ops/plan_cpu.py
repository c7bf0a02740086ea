"""A module's call on a CPU, worked out once for calls like it: what is left is to see that the call is alike, to
allocate the results, and to call the kernels."""

from functools import partial
from math import prod
from operator import is_, itemgetter
from typing import NamedTuple

import torch

from .._check import overridden
from .compiled import compiled, computed, widths
from .guards import guard
from .packed import Unmoved
from .scan_cpu import Scan
from .scan_rows import dense_offset
from .step_cpu import Step
from .workspace import on_huge_pages

_FEW = 1 << 14  # elements of a result up to which one like it is kept: torch.empty_like is quicker than torch.empty


class Sizes(NamedTuple):
    """A call of a recurrent module, or of a cell: its sizes and strides, and the shapes of what it returns."""

    T: int
    B: int
    L: int  # layers
    D: int  # directions
    x: tuple  # strides of a step and of a row
    y: tuple | None  # the first result's shape; None where it is h_n itself
    y_steps: tuple  # strides of a step and of a row of it


class Known:
    """A call of a module, to find calls like it."""

    def __init__(self, weights, x, h, c):
        """weights: the parameters by name; h, c: hx, c None where there is none."""
        self._has_c, self._zeros = c is not None, torch.zeros_like(h)
        self._read, weights = itemgetter(*weights), tuple(weights.values())
        c = torch.empty_like(h) if c is None or c is h else c
        self._alike, self._alike_with_c = guard(x, h, *weights), guard(x, h, c, *weights)
        self._records = any(t.requires_grad for t in (x, h, c, *weights))

    def _given(self, parameters, x, hx):
        """h, c, any where there is none, and the weights of a call that is alike, or None."""
        if hx is None:
            h = c = self._zeros
        elif not self._has_c:
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
        return (h, c, weights) if alike and not overridden() else None

    def __reduce__(self):
        return type(None), ()  # a module's copy, or what is pickled of it, has no plan


class Plan(Known):
    """A call of a module with kept weights that records no gradient, for calls like it."""

    def __init__(self, kept, weights, x, h, c, sizes):
        """kept: the Kept of each layer."""
        super().__init__(weights, x, h, c)
        self._weights = tuple(weights.values())
        self._unmoved = Unmoved(self._weights)
        self._runner, self._dtype = _runner(kept, x, h, sizes), x.dtype
        self._run = self._runner.run
        self._widens_c = self._has_c and isinstance(self._runner, _Scans) and computed(x.dtype) != x.dtype
        self._y = sizes.y
        few = self._y is not None and prod(self._y) <= _FEW
        self._like_y = torch.empty(self._y, dtype=x.dtype) if few else None

    def __call__(self, parameters, x, hx):
        """What the module with these parameters returns, or None where this call is another or a weight has changed."""
        given = None if self._records and torch.is_grad_enabled() else self._given(parameters, x, hx)
        if given is None:
            return None
        h, c, weights = given
        if not all(map(is_, weights, self._weights)) or not self._unmoved(weights):
            return None
        h_n = torch.empty_like(h)
        if self._y is None:
            y = h_n
        elif self._like_y is not None:
            y = torch.empty_like(self._like_y)
        else:
            y = on_huge_pages(torch.empty(self._y, dtype=self._dtype))
        if self._widens_c:
            c = c.to(computed(self._dtype))
        c_n = torch.empty_like(c) if self._has_c else h_n
        ends = y.data_ptr(), h_n.data_ptr(), c_n.data_ptr()
        if not self._run(x.data_ptr(), h.data_ptr(), c.data_ptr(), *ends):
            return None
        end = (h_n, c_n.to(self._dtype) if self._widens_c else c_n) if self._has_c else h_n
        return end if self._y is None else (y, end)


def _runner(kept, x, h, sizes):
    """What has `run`, a function of the addresses of x, h, c, y, h_n and c_n, c any where there is none; false, and
    nothing done, where the contents of the weights have changed."""
    single = sizes.T == sizes.D == len(kept) == 1
    if single and compiled().layout(kept[0].cell, widths(x.dtype)[0], False).step_rows >= sizes.B:
        return Step(kept[0], x.dtype, sizes.x[1], sizes.B)
    return _Scans(kept, x, h, sizes)


class _Scans:
    """Layers one after another; c is what the kernels compute in."""

    def __init__(self, kept, x, h, sizes):
        T, B, _, D, x_steps, _, y_steps = sizes
        H, dtype = h.shape[-1], x.dtype
        self._kept, self._has_c = kept, kept[0].has_c
        self._between, self._dtype = (T, B, D * H), dtype
        self._h, self._c = dtype.itemsize * D * B * H, computed(dtype).itemsize * D * B * H  # bytes of a layer's
        self._scans = []
        for i, layer in enumerate(kept):
            first, last = i == 0, i == len(kept) - 1
            own = (B * D * H, D * H)
            given, made = x_steps if first else own, y_steps if last else own
            inputs = [dense_offset(T, *given, dtype, d) for d in range(D)]
            outputs = [dense_offset(T, *made, dtype, d, d * H) for d in range(D)]
            own_sizes = T, B, x.shape[-1] if first else D * H, H
            scan = Scan.of(layer.cell, layer.packed, dtype, own_sizes, inputs, outputs)
            self._scans.append(partial(scan, layer.packed))

    def run(self, x, h, c, y, h_n, c_n):
        if not all([layer.unchanged() for layer in self._kept]):
            return False
        *below, last = self._scans
        for i, scan in enumerate(below):
            between = on_huge_pages(torch.empty(self._between, dtype=self._dtype))
            scan(x, *self._of(i, h, c), between.data_ptr(), *self._of(i, h_n, c_n))
            x, _held = between.data_ptr(), between  # held while the next layer reads it
        last(x, *self._of(len(below), h, c), y, *self._of(len(below), h_n, c_n))
        return True

    def _of(self, layer, h, c):
        """The addresses of a layer's states; 0 for a c that does not exist."""
        return h + self._h * layer, c + self._c * layer if self._has_c else 0
