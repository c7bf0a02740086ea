"""Step by step through a recurrent module, in constant memory and without an allocation a step."""

import torch
from torch.autograd.graph import increment_version
from torch.compiler import is_dynamo_compiling

from . import _check
from .nn._recurrent import Recurrent
from .ops.drivers import driver
from .ops.guards import guard


class Stream:
    """One time step a call: `y = stream(x_t)`.

        stream = seqkernels.Stream(lstm)          an RNN, LSTM or GRU from seqkernels.nn, in one direction
        y = stream(x_t)                           x_t (B, I) or (I,); y (B, H) or (H,)
        stream.state                              h (L, B, H), or (h, c); (L, H) unbatched
        stream.reset(); stream.reset(state)       to zero, or a learned initial state; to a copy of a given one

    y and the state are the stream's own buffers: the next call overwrites them, and a gradient that needs an
    overwritten one raises RuntimeError, as after any in-place change. `out=` gives a tensor to copy y to, which is then
    returned. The first call after construction or reset that succeeds fixes B. No gradient is recorded through the
    stream. What no kernel serves (other dtypes and devices, proj_size) runs through the module.

    On a GPU a step is one replay of a CUDA graph, recorded at the second step after a start or after the weights have
    moved; in a CUDA graph that the caller records, and where the weights are computed anew at each step, it is a launch
    a layer.

    The next step sees a change of the module's weights: in-place operators, optimizers, load_state_dict and replaced
    tensors always, a write past autograd, as through `.data`, on a CPU where it meets a sample of the contents.

    Raises ValueError for a module that cannot be streamed: bidirectional, or dropout between layers in training mode,
    which is checked at construction and at the first step after a reset.
    """

    def __init__(self, module):
        if not isinstance(module, Recurrent):
            raise TypeError(f"Stream takes an RNN, LSTM or GRU from seqkernels.nn, got {type(module).__name__}")
        if module.bidirectional:
            raise ValueError("a bidirectional module cannot be streamed: its reverse direction starts at the end")
        self._module = module
        self._check_dropout()
        self.reset()

    @property
    def state(self):
        """h (L, B, H), for an LSTM (h, c), unbatched without B: the given state until the first step, then the buffers.

        None before the first step from a default state.
        """
        return self._given if self._shape is None else self._current

    def reset(self, state=None):
        """Back to the initial state: zero or learned where `state` is None, else a copy of state = h or (h, c).

        Raises TypeError for what is not a tensor or a pair, RuntimeError for sizes (L, B, H) or (L, H) and devices
        that are not the module's, ValueError for another dtype. B is checked by the first step.
        """
        self._given = None if state is None else self._hx(self._copies(state))
        self._shape = None

    def __call__(self, x, out=None):
        """y (B, H), or (H,) for x (I,): the last layer's output, in a buffer that the next call overwrites."""
        if x.shape != self._shape:
            self._start(x)
        else:
            self._advance(x)
        return self._y if out is None else _copy(self._y, out)

    def _advance(self, x):
        if self._layers is None or is_dynamo_compiling() or not self._step(x):
            self._step_by_module(x)

    def _start(self, x):
        """The first step: from x (B, I) or (I,), buffers with the initial state in them. They stay if it succeeds."""
        module = self._module
        if self._shape is not None:
            raise RuntimeError(
                f"Expected x size {tuple(self._shape)}, got {list(x.shape)}: reset() starts another batch"
            )
        self._check_dropout()
        if x.dim() not in (1, 2) or x.shape[-1] != module.input_size:
            raise RuntimeError(
                f"Expected x size (B, {module.input_size}) or ({module.input_size},), got {list(x.shape)}"
            )
        batched, L, H = x.dim() == 2, module.num_layers, module.hidden_size
        B = x.shape[0] if batched else 1
        with torch.no_grad(), torch.inference_mode(False):
            states = self._initial(x)
            ys = x.new_empty(L, B, module.proj_size or H)
            self._states = states if batched else [s.unsqueeze(1) for s in states]
            self._layers = self._alike = None
            if module.fallback_reason(self._sequence(x), self._hx(states)) is None:
                given = module._cell, x, self._states, ys, module.weight_format
                self._layers = driver("stream", x.device).Layers(*given)
        self._current = self._hx(states)
        self._y = ys[-1] if batched else ys[-1, 0]
        self._written = (ys, *states)
        self._advance(x)
        self._shape = x.shape

    def _check_dropout(self):
        module = self._module
        if module.training and module.dropout and module.num_layers > 1:
            raise ValueError("the module is in training mode and has dropout: call module.eval() first")

    def _sequence(self, x):
        """x as a sequence of one step for the module."""
        return x.detach().unsqueeze(1 if self._module.batch_first and x.dim() == 2 else 0)

    def _initial(self, x):
        """Own, dense copies of the initial states, each (L, B, H), (L, H) unbatched."""
        module, given = self._module, self._given
        if given is None and module.learn_initial_state:
            given = module._learned_state(self._sequence(x))
        shapes = self._state_shapes(x.shape[:-1])
        if given is None:
            return [x.new_zeros(shape) for shape in shapes]
        states = self._copies(given)
        for i, (tensor, shape) in enumerate(zip(states, shapes)):
            if tensor.shape != shape:
                raise RuntimeError(f"Expected state[{i}] size {shape} for this x, got {list(tensor.shape)}")
        return states

    def _state_shapes(self, batch):
        """Sizes of h, and of c where there is one; batch is (B,), or () unbatched."""
        module = self._module
        sizes = [module.proj_size or module.hidden_size, module.hidden_size][: 1 + (module._has_c)]
        return [(module.num_layers, *batch, size) for size in sizes]

    def _copies(self, state):
        """Own, dense copies of the tensors of a state that fits the module."""
        pair = self._module._has_c
        tensors = state if pair else (state,)
        if not isinstance(tensors, (tuple, list)) or not all(isinstance(t, torch.Tensor) for t in tensors):
            raise TypeError(f"state must be {'a pair of tensors' if pair else 'a tensor'}, got {type(state).__name__}")
        shapes = self._state_shapes(tensors[0].shape[1:-1][:1] if tensors else ())
        if len(tensors) != len(shapes):
            raise RuntimeError(f"Expected a state of {len(shapes)} tensors, got {len(tensors)}")
        for i, (tensor, shape) in enumerate(zip(tensors, shapes)):
            _check.matches(f"state[{i}]", tensor, shape, self._module._weights()[0])
        with torch.inference_mode(False):
            return [s.detach().clone(memory_format=torch.contiguous_format) for s in tensors]

    def _hx(self, states):
        return tuple(states) if self._module._has_c else states[0]

    def _step(self, x):
        """One step by kernels; False where they do not serve it."""
        weights = self._module._weights()
        if not self._fits(x, weights):
            x = x.contiguous()
            if not self._fits(x, weights) and not self._plan(x, weights):
                return False
        self._layers(x, weights)
        increment_version(self._written)
        return True

    def _fits(self, x, weights):
        return self._alike is not None and self._alike(x, *weights) and not _check.overridden()

    def _plan(self, x, weights):
        """Prepares steps from tensors like x, if kernels may take them here and now."""
        self._alike = guard(x, *weights) if self._layers.takes(x, weights) else None
        return self._alike is not None

    def _step_by_module(self, x):
        module = self._module
        with torch.no_grad():
            y, hx = module(self._sequence(x), self._current)
            self._y.copy_(y.view_as(self._y))
            for mine, new in zip(self._states, hx if module._has_c else (hx,)):
                mine.copy_(new.view_as(mine))


def _copy(y, out):
    if out.shape != y.shape or out.dtype != y.dtype:
        raise RuntimeError(f"Expected out size {tuple(y.shape)} of {y.dtype}, got {list(out.shape)} of {out.dtype}")
    return out.copy_(y)
