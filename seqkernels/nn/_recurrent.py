"""What RNN, LSTM and GRU share: the layers one after another, and a learned initial state."""

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import _backends, _check
from ..kernels.cells import CELLS
from ..ops import scan as _ops
from ..ops.layers import as_wavefront, in_turn
from . import _by_reference
from ._served import Served, zero_state

CELL_OF_MODE = {
    "LSTM": "lstm",
    "GRU": "gru",
    "RNN_TANH": "rnn_tanh",
    "RNN_RELU": "rnn_relu",
    "RNN_SIGMOID": "rnn_sigmoid",
}


def _directions(module):
    return 2 if module.bidirectional else 1


def _permuted(state, order):
    """A state (L*D, B, H) with its rows in another order, or as it is where that is None."""
    return state if order is None else state.index_select(1, order)


def _batch(packed):
    """The rows of a PackedSequence, where that can be had without looking at a value, which compilers cannot."""
    _, sizes, order, _ = packed
    return int(sizes[0]) if order is None else len(order)


class Recurrent(Served):
    """Stands before torch's class among the bases of RNN, LSTM and GRU; `forward` returns (output, h_n), for an LSTM
    (output, (h_n, c_n))."""

    def __init__(self, *args, learn_initial_state=False, recompute=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.recompute = recompute
        self.learn_initial_state = learn_initial_state
        if learn_initial_state:
            weight, rows = self._flat_weights[0], self.num_layers * _directions(self)
            widths = {"h_0": self.proj_size or self.hidden_size}
            if self._has_c:
                widths["c_0"] = self.hidden_size
            for name, width in widths.items():
                self.register_parameter(name, torch.nn.Parameter(weight.new_zeros(rows, width)))

    def reset_parameters(self):
        """Weights uniform as torch.nn's, a learned initial state zero."""
        super().reset_parameters()
        if self.learn_initial_state:
            for name in ("h_0", "c_0")[: CELLS[self._cell].states]:
                torch.nn.init.zeros_(getattr(self, name))

    def extra_repr(self):
        ours = [name for name in ("learn_initial_state", "recompute") if getattr(self, name)]
        form = "" if self.weight_format is None else f", weight_format={self.weight_format!r}"
        return super().extra_repr() + "".join(f", {name}=True" for name in ours) + form

    @property
    def _cell(self):
        return CELL_OF_MODE[self.mode]

    def _data(self, input):
        return input.data if isinstance(input, PackedSequence) else input

    def _weight_shapes(self):
        D, H, shapes = _directions(self), self.hidden_size, []
        rows = CELLS[self._cell].gates * H
        for layer in range(self.num_layers):
            own = [(rows, self.input_size if layer == 0 else D * H), (rows, H)]
            shapes += (own + ([(rows,)] * 2 if self.bias else [])) * D
        return dict(zip(self._flat_weights_names, shapes))

    def _size_reason(self, input, states):
        if self.proj_size:
            return "proj_size is set"
        packed, shape = isinstance(input, PackedSequence), self._data(input).shape
        if packed:
            if _backends.option_reasons(["batch_sizes"], input.data):
                return "the input is a PackedSequence, which no GPU kernel takes yet"
            time, batch = len(input.batch_sizes), _batch(input)
            expected = (self.num_layers * _directions(self), batch, self.hidden_size)
        elif len(shape) == 3:
            time, batch = (shape[1], shape[0]) if self.batch_first else (shape[0], shape[1])
            expected = (self.num_layers * _directions(self), batch, self.hidden_size)
        elif len(shape) == 2:
            time, batch = shape[0], 1
            expected = (self.num_layers * _directions(self), self.hidden_size)
        else:
            return "the input is refused by torch"
        if shape[-1] != self.input_size or packed and len(shape) != 2:
            return "the input is refused by torch"
        if not packed and batch == 0:
            return "the batch is empty"
        if time == 0:
            return "the sequence is empty"
        for s in states:
            if s.shape != expected:
                return "hx is refused by torch"
        return None

    def _weight_names(self):
        return self._flat_weights_names

    def _learned_state(self, input):
        states = [self.h_0, self.c_0] if self._has_c else [self.h_0]
        packed = isinstance(input, PackedSequence)
        if packed or input.dim() == 3:
            batch = input.batch_sizes[0] if packed else input.shape[0 if self.batch_first else 1]
            states = [s.unsqueeze(1).expand(-1, batch, -1) for s in states]
        return tuple(states) if self._has_c else states[0]

    def _sizes(self, input):
        L, D = self.num_layers, _directions(self)
        width, strides = D * self.hidden_size, input.stride()
        y = (*input.shape[:-1], width)
        if input.dim() == 2:
            return (y[0], 1, L, D, (strides[0], 0), y, (width, 0)), (L * D, self.hidden_size)
        time = 1 if self.batch_first else 0
        T, B = y[time], y[1 - time]
        y_steps = (width, T * width) if self.batch_first else (B * width, width)
        return (T, B, L, D, (strides[time], strides[1 - time]), y, y_steps), (L * D, B, self.hidden_size)

    def _is_random(self):
        return self.training and self.dropout and self.num_layers > 1

    def _run(self, input, hx, weights, scan):
        """What `forward` returns, from checked arguments, by scan(cell, x, h_0, c_0, weights, batch_first,
        recompute)."""
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx, weights, scan)
        batched, lstm = input.dim() == 3, self._has_c
        x = input if batched else input.unsqueeze(1)
        batch_first = self.batch_first and batched
        if hx is None:
            shape = (self.num_layers * _directions(self), x.shape[0 if batch_first else 1], self.hidden_size)
            shared = x.device.type == "cpu" and scan is not _ops.through_operator
            h_0 = zero_state(shape, x.dtype) if shared else x.new_zeros(shape)
            c_0 = h_0 if lstm else None
        else:
            states = [(s if batched else s.unsqueeze(1)).contiguous() for s in (hx if lstm else (hx,))]
            h_0, c_0 = states if lstm else (states[0], None)
        y, h_n, c_n = self._stack(x, h_0, c_0, weights, batch_first, scan)
        if not batched:
            y, h_n, c_n = y.squeeze(1), h_n.squeeze(1), c_n.squeeze(1) if lstm else None
        return (y, (h_n, c_n)) if lstm else (y, h_n)

    def _run_packed(self, packed, hx, weights, scan):
        """The same of a PackedSequence: its data is never unpacked, the states are sorted as it is."""
        x, sizes, order, inverse = packed

        def scan_packed(cell, x, h_0, c_0, weights, batch_first, recompute=False):
            return scan(cell, x, h_0, c_0, weights, batch_first, *[None] * 4, sizes, recompute=recompute)

        if hx is None:
            zeros = x.new_zeros(self.num_layers * _directions(self), _batch(packed), self.hidden_size)
            h_0, c_0 = zeros, zeros if self._has_c else None
        else:
            states = [_permuted(s, order) for s in (hx if self._has_c else (hx,))]
            h_0, c_0 = (*states, None)[:2]
        y, h_n, c_n = self._stack(x, h_0, c_0, weights, False, scan_packed)
        y, h_n = PackedSequence(y, sizes, order, inverse), _permuted(h_n, inverse)
        return (y, (h_n, _permuted(c_n, inverse))) if self._has_c else (y, h_n)

    def _stack(self, x, h_0, c_0, weights, batch_first, scan):
        """All layers over x (T, B, I) or (B, T, I): y, h_n (L*D, B, H), c_n (L*D, B, H) or what stands for it."""
        cell = self._cell
        if self.num_layers == 1:
            return scan(cell, x, h_0, c_0, weights, batch_first, recompute=self.recompute)
        dropout = self.dropout if self.training else 0.0
        given = cell, x, h_0, c_0, weights, batch_first, self.num_layers
        done = None
        if scan is _ops.through_operator and not (dropout or self.recompute):
            done = as_wavefront(*given)
        return in_turn(scan, *given, dropout, self.recompute) if done is None else done

    def uses_reference(self):
        """Whether what no kernel serves runs in plain torch operators, not as torch.nn's own forward."""
        return self.mode == "RNN_SIGMOID" or (_check.vmapped() and not self.proj_size)

    def _by_reference(self, input, hx):
        return _by_reference.recurrent(self, input, hx)
