"""RNNCell, LSTMCell and GRUCell in the place of torch.nn's: one step is a scan of length one."""

import torch

from .. import _check
from ..kernels.cells import CELLS
from ..ops import scan as _ops
from . import _by_reference
from ._served import Served


class Cell(Served):
    """Stands before torch's class among the bases of the cells; `forward` returns h', for an LSTMCell (h', c')."""

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

    def _weight_names(self):
        return ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]

    def _sizes(self, input):
        shape = (*input.shape[:-1], self.hidden_size)
        B, x_row = (input.shape[0], input.stride(0)) if input.dim() == 2 else (1, 0)
        return (1, B, 1, 1, (0, x_row), None, (0, self.hidden_size)), shape

    def _run(self, input, hx, weights, scan):
        """What `forward` returns, from checked arguments, by scan(cell, x, h_0, c_0, weights, batch_first)."""
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            states = [x.new_zeros((x.shape[0], self.hidden_size))] * (1 + self._has_c)
        else:
            states = [s if batched else s.unsqueeze(0) for s in self._given_states(hx)]
        if scan is _ops.recorded:
            ends = _ops.recorded_step(self._cell, x, *states, *[None] * (2 - len(states)), weights)
        else:
            h, c = (*(s.unsqueeze(0).contiguous() for s in states), None)[:2]
            _, *ends = scan(self._cell, x.unsqueeze(0), h, c, weights, False)
            ends = [s[0] for s in ends[: len(states)]]
        ends = [s if batched else s[0] for s in ends[: len(states)]]
        return tuple(ends) if self._has_c else ends[0]

    def uses_reference(self):
        """Whether what no kernel serves runs in plain torch operators, not as torch.nn's own forward."""
        return self._cell == "rnn_sigmoid" or _check.vmapped()

    def _by_reference(self, input, hx):
        return _by_reference.cell(self, input, hx)


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

    def _is_plain(self, input, hx, dtype):
        return self._cell in CELLS and super()._is_plain(input, hx, dtype)
