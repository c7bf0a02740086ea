"""Step by step through a recurrent module, in constant memory and without an allocation a step."""

import torch

from . import _check
from .nn._recurrent import CELL_OF_MODE, Recurrent
from .ops import direct


class Stream:
    """One time step a call: `y = stream(x_t)`.

        stream = seqkernels.Stream(lstm)          an RNN, LSTM or GRU from seqkernels.nn, in one direction
        y = stream(x_t)                           x_t (B, I) or (I,); y (B, H) or (H,)
        stream.state                              h (L, B, H), or (h, c); (L, H) unbatched
        stream.reset(); stream.reset(state)       to zero, or a learned initial state; to a given one

    y and the state are the stream's own buffers: the next call overwrites them. `out=` gives a tensor to copy y to,
    which is then returned. The first call after construction or reset fixes B. No gradient is recorded. A change of
    the module's weights is seen at the next step. What no kernel serves (other dtypes and devices, proj_size) runs
    through the module.

    Raises ValueError for a module that cannot be streamed: bidirectional, or dropout between layers in training mode.
    """

    def __init__(self, module):
        if not isinstance(module, Recurrent):
            raise TypeError(f"Stream takes an RNN, LSTM or GRU from seqkernels.nn, got {type(module).__name__}")
        if module.bidirectional:
            raise ValueError("a bidirectional module cannot be streamed: its reverse direction starts at the end")
        if module.training and module.dropout and module.num_layers > 1:
            raise ValueError("the module is in training mode and has dropout: call module.eval() first")
        self._module = module
        self._cell = CELL_OF_MODE[module.mode]
        self.reset()

    @property
    def state(self):
        """h (L, B, H), for an LSTM (h, c); None before the first step from a default state."""
        return self._shown

    def reset(self, state=None):
        """Back to the initial state: zero or learned where `state` is None, else state = h (L, B, H) or (h, c)."""
        self._given = state
        self._shape = self._shown = None

    def __call__(self, x, out=None):
        """y (B, H), or (H,) for x (I,): the last layer's output, in a buffer that the next call overwrites."""
        if x.shape != self._shape:
            self._start(x)
        plain = self._served and _check.plain_thread() and _check.plain(self._dtype, x)
        if plain and self._refresh():
            self._step(x)
        else:
            self._step_by_module(x)
        return self._y if out is None else _copy(self._y, out)

    def _start(self, x):
        """Buffers for x (B, I) or (I,), and the initial state in them."""
        module = self._module
        if self._shape is not None:
            raise RuntimeError(
                f"Expected x size {tuple(self._shape)}, got {list(x.shape)}: reset() starts another batch"
            )
        if x.dim() not in (1, 2) or x.shape[-1] != module.input_size:
            raise RuntimeError(
                f"Expected x size (B, {module.input_size}) or ({module.input_size},), got {list(x.shape)}"
            )
        batched, L, H = x.dim() == 2, module.num_layers, module.hidden_size
        B = x.shape[0] if batched else 1
        with torch.no_grad(), torch.inference_mode(False):
            states = self._initial(x)
            y = x.new_empty(B, module.proj_size or H)
            self._served = module.fallback_reason(self._sequence(x), self._hx(states)) is None
        self._states = states if batched else [s.unsqueeze(1) for s in states]
        self._dtype, self._shape, self._shown = x.dtype, x.shape, self._hx(states)
        self._buffers = [y.new_empty(B, H) for _ in range(L - 1)] + [y]
        self._y = y if batched else y[0]
        self._packed, self._layers = [None] * L, [None] * L

    def _sequence(self, x):
        """x as a sequence of one step for the module."""
        return x.detach().unsqueeze(1 if self._module.batch_first and x.dim() == 2 else 0)

    def _initial(self, x):
        """Own, dense copies of the initial states, each (L, B, H), (L, H) unbatched."""
        module, given = self._module, self._given
        sizes = [module.proj_size or module.hidden_size, module.hidden_size][: 1 + (module.mode == "LSTM")]
        shapes = [(module.num_layers, *x.shape[:-1], size) for size in sizes]
        if given is None and module.learn_initial_state:
            given = module._learned_state(self._sequence(x))
        if given is None:
            return [x.new_zeros(shape) for shape in shapes]
        given = given if module.mode == "LSTM" else (given,)
        if len(given) != len(shapes):
            raise RuntimeError(f"Expected a state of {len(shapes)} tensors, got {len(given)}")
        for i, (tensor, shape) in enumerate(zip(given, shapes)):
            _check.matches(f"state[{i}]", tensor, shape, x)
        return [s.detach().clone(memory_format=torch.contiguous_format) for s in given]

    def _hx(self, states):
        return tuple(states) if self._module.mode == "LSTM" else states[0]

    def _step(self, x):
        x = x if x.stride(-1) == 1 else x.contiguous()
        address, row = x.data_ptr(), x.stride(0) if x.dim() == 2 else 0
        for layer, buffer in zip(self._layers, self._buffers):
            layer.take(address, row)
            address, row = buffer.data_ptr(), buffer.shape[1]

    def _refresh(self):
        """Builds a layer's steps again where its packed weights are not those in the cache. False: not packable."""
        module, weights = self._module, self._module._weights()
        per, H = len(weights) // len(self._layers), module.hidden_size
        for i, before in enumerate(self._packed):
            own, I = weights[i * per : i * per + per], module.input_size if i == 0 else H
            packed = direct.known_weights(self._cell, own, I, H, self._dtype)
            if packed is None or packed is not before:
                states = [s[i] for s in self._states]
                h, c = states if len(states) == 2 else (states[0], None)
                packed = packed or direct.packed_weights(self._cell, I, h, own)
                if packed is None:
                    return False
                self._layers[i] = direct.steps(self._cell, packed, I, h, c, self._buffers[i])
                self._packed[i] = packed
        return True

    def _step_by_module(self, x):
        module = self._module
        with torch.no_grad():
            y, hx = module(self._sequence(x), self._shown)
            self._y.copy_(y.view_as(self._y))
            for mine, new in zip(self._states, hx if module.mode == "LSTM" else (hx,)):
                mine.copy_(new.view_as(mine))


def _copy(y, out):
    if out.shape != y.shape or out.dtype != y.dtype:
        raise RuntimeError(f"Expected out size {tuple(y.shape)} of {y.dtype}, got {list(out.shape)} of {out.dtype}")
    return out.copy_(y)
