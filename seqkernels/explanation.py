"""Which path a module's call takes, and why."""

from dataclasses import dataclass

from torch import nn as torch_nn

from . import _check
from .nn import GRU, LSTM, RNN, GRUCell, LSTMCell, MultiheadAttention, RNNCell

_OURS = (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell, MultiheadAttention)
_TORCHS = tuple(getattr(torch_nn, cls.__name__) for cls in _OURS)


@dataclass(frozen=True)
class Explanation:
    """The path of a call: "kernel", "torch" (torch's own implementation) or "reference" (plain torch operators)."""

    module: str
    path: str
    reason: str

    def __str__(self):
        return f"{self.module}: {self.path} ({self.reason})"


def explain(module, *inputs, **keywords):
    """The path that module(*inputs, **keywords) would take here and now, without running it.

    Depends on what decides the path: shapes, dtypes, devices, grad mode, active transforms. Raises TypeError for a
    module that is neither one of this package's nor what they take the place of, and what the module itself raises
    for arguments that are no tensors.
    """
    name = f"{type(module).__module__.split('.')[0]}.nn.{type(module).__name__}"
    if not isinstance(module, _OURS):
        if not isinstance(module, _TORCHS):
            raise TypeError(f"explain knows recurrent and attention modules, got {type(module).__name__}")
        return Explanation(name, "torch", "it is torch's own module: build it from seqkernels.nn")
    reason = module.fallback_reason(*inputs, **keywords)
    if reason is None:
        return Explanation(name, "kernel", "a kernel serves this call")
    if reason == _check.REFUSED:
        module(*inputs, **keywords)  # raises, and says more than a path would
    own = getattr(module, "uses_reference", None)
    return Explanation(name, "reference" if own is not None and own() else "torch", reason)
