"""What the recurrent modules and the cells share: which path a call takes, and why."""

from functools import lru_cache, partial
from math import prod

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import _check
from .._backends import DTYPES
from ..ops import direct
from ..ops import scan as _ops
from ..ops.packed import forget
from ..ops.packing import FORMS


@lru_cache(maxsize=16)
def _small_zeros(shape, dtype):
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=dtype, device="cpu")


def zero_state(shape, dtype):
    """Zeros that a kernel reads and nobody writes: shared between calls while they are small."""
    return _small_zeros(shape, dtype) if prod(shape) <= 1 << 16 else torch.zeros(shape, dtype=dtype, device="cpu")


class Served:
    """Stands before torch's class among the bases of a module.

    Needs of a subclass: `_cell`, the name of the cell; `_weight_names()`, and `_weight_shapes()` by name;
    `_size_reason(input, states)`; `_sizes(input)`, those of `plan_cpu.Sizes`; `_run(input, hx, weights, scan)`, what
    `forward` returns; `_by_reference(input, hx)` and `uses_reference()`.
    """

    _has_c = False  # whether hx is (h, c)
    # How the last plain calls were made, without a gradient and with one, for more of the kind; forgotten with any
    # attribute that is set.
    _plan = None
    _training_plans = None
    recompute = False
    learn_initial_state = False
    # What float32 weights are kept as for calls on a CPU that record no gradient: None, as they are; "bfloat16", or
    # "int8", with a scale for each of their rows. The parameters stay. On the text of bench/studies/formats.py the loss
    # moved by less than 0.0002 bits a byte, and the likeliest byte changed in 0.1% of places, with int8 in 0.5%.
    weight_format = None

    def forward(self, input, hx=None):
        """As torch.nn's forward."""
        if hx is None and self.learn_initial_state:
            hx = self._learned_state(input)
        if not is_dynamo_compiling():
            for plan in (self._training_plans, self._plan):
                done = None if plan is None else plan(self._parameters, input, hx)
                if done is not None:
                    return done
        weights = self._weights()
        if _check.plain_thread() and self._is_plain(input, hx, weights[0].dtype):
            tensors = (input, *self._given_states(hx), *weights)
            if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)):
                done = self._by_plan(input, hx, weights)
                return self._run(input, hx, weights, self._direct()) if done is None else done
            if _check.plain(weights[0].dtype, *weights):
                done = None if self.recompute else self._by_training_plan(input, hx, weights)
                return self._run(input, hx, weights, _ops.recorded) if done is None else done
        if self.fallback_reason(input, hx) is None:
            return self._run(input, hx, weights, _ops.through_operator)
        _check.state_dtypes(input, self._given_states(hx), weights[0].dtype)
        return self._by_reference(input, hx) if self.uses_reference() else super().forward(input, hx)

    def _by_plan(self, input, hx, weights):
        """The result of a plain call that needs no gradient, by a plan that is kept for more of the kind, or None."""
        given = self._for_plan(input, hx, weights)
        if given is None:
            return None
        plan = self.__dict__["_plan"] = direct.plan(self._cell, *given, self.weight_format)
        return None if plan is None else plan(self._parameters, input, given[1:3] if self._has_c else given[1])

    def _by_training_plan(self, input, hx, weights):
        """The same of a plain call with a gradient."""
        given = self._for_plan(input, hx, weights)
        if given is None:
            return None
        batch_first = getattr(self, "batch_first", False)
        plans = direct.training_plan(self._training_plans, self._cell, *given, batch_first)
        if plans is None:
            return None
        self.__dict__["_training_plans"] = plans
        return plans(self._parameters, input, given[1:3] if self._has_c else given[1])

    def _for_plan(self, input, hx, weights):
        """The input, h, c, the weights by name and the sizes of a call that can be planned, or None."""
        names = self._weight_names()
        if self._is_random() or not all(name in self._parameters for name in names):
            return None
        sizes, state_shape = self._sizes(input)
        states = self._given_states(hx) or (zero_state(state_shape, input.dtype),) * (1 + self._has_c)
        if not all(s.is_contiguous() for s in states):
            return None
        return input, states[0], states[1] if self._has_c else None, dict(zip(names, weights)), sizes

    def _is_random(self):
        """Whether a call in this mode draws random numbers."""
        return False

    def _direct(self):
        form = self.weight_format
        return direct.scan if form is None else partial(direct.scan, form=form)

    def __setattr__(self, name, value):
        if name == "weight_format" and value is not None and value not in FORMS:
            raise ValueError(f"weight_format must be None, {' or '.join(map(repr, FORMS))}, got {value!r}")
        self._forget_plans()
        super().__setattr__(name, value)

    def _forget_plans(self):
        for name in ("_plan", "_training_plans"):
            self.__dict__.pop(name, None)

    def _weights(self):
        """Parameters, read where they live; a parametrized or weight-normed one is an attribute that is computed."""
        parameters = self._parameters
        return [parameters[n] if n in parameters else getattr(self, n) for n in self._weight_names()]

    def fallback_reason(self, input, hx=None) -> str | None:
        """Why a call does not run on the kernels, or None. What torch refuses is left to torch, and to its message."""
        states, data = self._given_states(hx), self._data(input)
        if states is None or not isinstance(data, Tensor):
            return _check.REFUSED
        reason = _check.thread_reason(data.device)
        if reason is not None:
            return reason
        lowered = _check.autocast_dtype(data.device) is not None
        weights, shapes = self._weights(), self._weight_shapes()
        named = [("the input", data), *((f"hx[{i}]", s) for i, s in enumerate(states)), *zip(shapes, weights)]
        for name, tensor in named:
            reason = _check.tensor_reason(name, tensor)
            if reason is not None:
                return reason
            if tensor.device != data.device or tensor.dtype != weights[0].dtype and not lowered:
                return f"{name} is {tensor.dtype} on {tensor.device}: not the dtype or device of the rest"
        reason = self._size_reason(input, states)
        if reason is None and any(w.shape != shape for w, shape in zip(weights, shapes.values())):
            return "a weight has been given another shape"
        return reason

    def _data(self, input):
        """The tensor of an input."""
        return input

    def _apply(self, fn, recurse=True):
        # Conversions may swap the parameters, which torch refuses for tensors that are known by weak references.
        self._forget_plans()
        forget(self._weights())
        return super()._apply(fn, recurse)

    def _given_states(self, hx):
        """hx as a tuple of tensors, empty where it is None; None where it is not what torch takes."""
        if hx is None:
            return ()
        if not self._has_c:
            return (hx,) if isinstance(hx, Tensor) else None
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            return None
        return tuple(hx) if isinstance(hx[0], Tensor) and isinstance(hx[1], Tensor) else None

    def _is_plain(self, input, hx, dtype):
        """True for arguments that the driver can take as they are: dense tensors of the right sizes."""
        states = self._given_states(hx)
        if states is None or dtype not in DTYPES["cpu"] or not _check.plain(dtype, input, *states):
            return False
        return self._size_reason(input, states) is None
