"""What the recurrent modules and the cells share: whether the kernels serve a call, and why not."""

import torch
from torch import Tensor

from .. import _check
from ..ops.packed import forget


class Served:
    """Needs of a subclass: `_weights()`, their `_weight_shapes()` by name, and `_size_reason(input, states)`."""

    _has_c = False  # whether hx is (h, c)

    def fallback_reason(self, input, hx=None) -> str | None:
        """Why a call does not run on the kernels, or None. What torch refuses is left to torch, and to its message."""
        reason = _check.thread_reason()
        if reason is not None:
            return reason
        states = self._given_states(hx)
        if states is None or not isinstance(input, Tensor):
            return _check.REFUSED
        weights, shapes = self._weights(), self._weight_shapes()
        named = [("the input", input), *((f"hx[{i}]", s) for i, s in enumerate(states)), *zip(shapes, weights)]
        for name, tensor in named:
            reason = _check.tensor_reason(name, tensor)
            if reason is not None:
                return reason
            if tensor.device != input.device or tensor.dtype != weights[0].dtype:
                return f"{name} is {tensor.dtype} on {tensor.device}: not the dtype or device of the rest"
        reason = self._size_reason(input, states)
        if reason is None and any(w.shape != shape for w, shape in zip(weights, shapes.values())):
            return "a weight has been given another shape"
        return reason

    def _apply(self, fn, recurse=True):
        # Conversions may swap the parameters, which torch refuses for tensors that are known by weak references.
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

    def _is_short(self, input, hx, weights):
        """True for a call that the driver can take as it is: dense tensors, right sizes, no gradient to record."""
        dtype = weights[0].dtype
        states = self._given_states(hx)
        if states is None or dtype not in _check.SERVED_DTYPES:
            return False
        if not _check.plain(dtype, input, *states):
            return False
        if torch.is_grad_enabled() and torch._C._any_requires_grad(input, *states, *weights):
            return False
        return self._size_reason(input, states) is None
