"""A module's call on a CPU that records a gradient, of one layer, worked out once for calls like it (plan_cpu.py)."""

import torch

from seqkernels.kernels.cells import CELLS

from .compiled import computed
from .packed import kept_parameters, packed_by
from .plan_cpu import Known
from .scan import recorded_by
from .scan_cpu import Scan
from .scan_rows import dense_offset
from .shared_weights import SharedWeights
from .step_backward_cpu import StepBackward
from .workspace import on_huge_pages

_MOST = 4  # calls that a module keeps: the first step of a loop is unlike the others


class TrainingPlans:
    """The last few plans of a module."""

    def __init__(self):
        self._plans = ()

    def __call__(self, parameters, x, hx):
        """What the module with these parameters returns, or None where no plan is of such a call."""
        for plan in self._plans:
            done = plan(parameters, x, hx)
            if done is not None:
                return done
        return None

    def add(self, plan):
        self._plans = (plan, *self._plans[: _MOST - 1])

    def __reduce__(self):
        return type(None), ()  # as of a plan


class TrainingPlan(Known):
    """A call of a layer, or of a cell, with a gradient, for calls like it."""

    def __init__(self, cell, weights, x, h, c, sizes, batch_first):
        """weights: the parameters by name; x (T, B, I) or (B, T, I), or (B, I) of a cell; h, c as there, c None where
        there is none."""
        super().__init__(weights, x, h, c)
        T, B, _, D, x_steps, y, y_steps = sizes
        H, dtype = h.shape[-1], x.dtype
        self.cell, self.batch_first, self._T = cell, batch_first, T
        self._y, self._dtype, self._wide, self._kept = y, dtype, computed(dtype), None
        self._states = CELLS[cell].states, D, T, B, H
        inputs = [dense_offset(T, *x_steps, dtype, d) for d in range(D)]
        outputs = [dense_offset(T, *y_steps, dtype, d, d * H) for d in range(D)]
        weights = tuple(weights.values())
        packed = packed_by(self._kept_of(weights), cell, weights)
        # Of a single step that shares its weights with others.
        self.backward = StepBackward(cell, dtype, B, x.shape[-1], H) if T == D == 1 and B * H else None
        self._scan = Scan.of(cell, packed, dtype, (T, B, x.shape[-1], H), inputs, outputs, True, None, True)

    def __call__(self, parameters, x, hx):
        """As a `Plan`."""
        given = self._given(parameters, x, hx) if torch.is_grad_enabled() else None
        if given is None:
            return None
        h, c, weights = given
        kept = self._kept_of(weights)
        shared = None if kept is None or self.backward is None else SharedWeights.of(kept, weights)
        y, h_n, c_n = recorded_by(self, shared, x, h, c if self._has_c else None, weights)
        end = (h_n, c_n) if self._has_c else h_n
        return end if self._y is None else (y, end)

    def forward(self, x, h, c, weights):
        """y, h_n, c_n, states and gates, as `scan_cpu.forward` with save; of a cell y is h_n."""
        packed = packed_by(self._kept, self.cell, weights)
        h_n, c = torch.empty_like(h), None if c is None else c.to(self._wide)
        c_n = None if c is None else torch.empty_like(c)
        y = h_n if self._y is None else on_huge_pages(torch.empty(self._y, dtype=self._dtype))
        states, gates = self._scan.run(packed, self._states, x, h, c, y, h_n, c_n)
        return y, h_n, None if c_n is None else c_n.to(self._dtype), states, gates

    def _kept_of(self, weights):
        kept = self._kept
        if kept is None or not kept.same(weights) or not kept.unchanged():
            kept = self._kept = kept_parameters(self.cell, weights, self._T)
        return kept
