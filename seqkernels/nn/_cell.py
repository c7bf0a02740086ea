"""RNNCell, LSTMCell and GRUCell in the place of torch.nn's: one step is a scan of length one."""

import torch

from .. import _check
from ..kernels.cells import CELLS
from ..ops import direct
from ..ops import scan as _ops
from . import _by_reference
from ._served import Served


class Cell(Served):
    """Stands before torch's class among the bases of the three cells; `self._cell` is the name of the cell."""

    def forward(self, input, hx=None):
        """As torch.nn's forward: h', for an LSTMCell (h', c')."""
        weights = self._weights()
        if _check.plain_thread() and self._is_short(input, hx, weights):
            return self._step(input, hx, weights, direct.step)
        if self.fallback_reason(input, hx) is None:
            return self._step(input, hx, weights, _ops.step_through_operator)
        return self._fallback(input, hx)

    def _weight_shapes(self):
        rows, H = CELLS[self._cell].gates * self.hidden_size, self.hidden_size
        shapes = {"weight_ih": (rows, self.input_size), "weight_hh": (rows, H)}
        return shapes | ({"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else {})

    def _size_reason(self, input, states):
        shape, expected = input.shape, (self.hidden_size,)
        if len(shape) not in (1, 2) or shape[-1] != self.input_size:
            return "the input is refused by torch"
        if len(shape) == 2:
            if shape[0] == 0:
                return "the batch is empty"
            expected = (shape[0], self.hidden_size)
        for s in states:
            if s.shape != expected:
                return "hx is refused by torch"
        return None

    def _weights(self):
        p = self._parameters
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return [p[n] if n in p else getattr(self, n) for n in names]

    def _step(self, input, hx, weights, step):
        """What `forward` returns, from checked arguments, by step(cell, x (B, I), h (B, H), c, weights)."""
        batched, lstm = input.dim() == 2, self._has_c
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            h = c = x.new_zeros((x.shape[0], self.hidden_size))
        else:
            h, c = hx if lstm else (hx, None)
            if not batched:
                h, c = h.unsqueeze(0), c.unsqueeze(0) if lstm else None
            h, c = h.contiguous(), c.contiguous() if lstm else None
        h, c = step(self._cell, x, h, c if lstm else None, weights)
        if not batched:
            h, c = h.squeeze(0), c.squeeze(0) if lstm else None
        return (h, c) if lstm else h

    def uses_reference(self):
        """Whether what no kernel serves runs in plain torch operators, not as torch.nn's own forward."""
        return self._cell == "rnn_sigmoid" or _check.vmapped()

    def _fallback(self, input, hx):
        _check.state_dtypes(input, self._given_states(hx))
        return _by_reference.cell(self, input, hx) if self.uses_reference() else super().forward(input, hx)


class LSTMCell(Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on this package's kernels: input (B, I) or (I), hx = (h, c) each (B, H) or (H); (h', c')."""

    _cell = "lstm"
    _has_c = True


class GRUCell(Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell on this package's kernels: input (B, I) or (I), hx (B, H) or (H); h' like hx."""

    _cell = "gru"


class RNNCell(Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell on this package's kernels; its nonlinearity may also be "sigmoid".

    input (B, I) or (I), hx (B, H) or (H); returns h' like hx. torch has no operator for "sigmoid": what the kernels
    do not serve then runs in plain torch operators (`seqkernels.reference`).
    """

    @property
    def _cell(self):
        return f"rnn_{self.nonlinearity}"

    def fallback_reason(self, input, hx=None):
        if self._cell not in CELLS:
            return "the nonlinearity is refused by torch"
        return super().fallback_reason(input, hx)

    def _is_short(self, input, hx, weights):
        return self._cell in CELLS and super()._is_short(input, hx, weights)
