"""torch.nn with its recurrent modules and MultiheadAttention on this package's kernels.

`from seqkernels import nn` takes the place of `from torch import nn`: every public name of torch.nn is here.
"""

import torch.nn as _torch_nn

from ._attention import MultiheadAttention
from ._cell import GRUCell, LSTMCell, RNNCell
from ._rnn import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "MultiheadAttention", "RNNCell"]
__all__ += [name for name in dir(_torch_nn) if not name.startswith("_") and name not in __all__]


def __getattr__(name):
    return getattr(_torch_nn, name)


def __dir__():
    return __all__
