"""RNN, LSTM and GRU in the place of torch.nn's: same constructor, state dict and results, one kernel call a layer.

What no kernel serves runs as torch's own module would; `seqkernels.explain(module, *inputs)` says which path a call
takes.
"""

import torch

from ._dynamo import traceable
from ._recurrent import Recurrent


@traceable
class LSTM(Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM on this package's kernels. Arguments, attributes and results are torch.nn.LSTM's.

    learn_initial_state=True adds parameters h_0 (L*D, H) and c_0 (L*D, H), zero at first, which take the place of the
    zero state where hx is not given. recompute=True, or the attribute set later, trains in less memory: see
    `seqkernels.functional.scan`. It has no effect where a call takes torch's path.
    Inputs: input (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a PackedSequence; hx = (h_0, c_0), each
    (L*D, B, H), (L*D, H) unbatched. Returns (output, (h_n, c_n)).
    """

    _has_c = True


@traceable
class GRU(Recurrent, torch.nn.GRU):
    """torch.nn.GRU on this package's kernels. Arguments, attributes and results are torch.nn.GRU's.

    learn_initial_state=True adds the parameter h_0 (L*D, H), zero at first, which takes the place of the zero state
    where hx is not given. recompute as in LSTM. Inputs as LSTM's, with hx = h_0 (L*D, B, H). Returns (output, h_n).
    """


@traceable
class RNN(Recurrent, torch.nn.RNN):
    """torch.nn.RNN on this package's kernels; its nonlinearity may also be "sigmoid".

    Arguments, attributes and results are torch.nn.RNN's; learn_initial_state and recompute as in GRU, but that on a GPU
    there is nothing to save: an RNN keeps states alone. torch has no operator for "sigmoid": what the kernels do not
    serve then runs in plain torch operators (`seqkernels.reference`).
    """

    def __init__(self, *args, **kwargs):
        nonlinearity = args[3] if len(args) > 3 else kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu", "sigmoid"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh', 'relu' or 'sigmoid'.")
        known = "tanh" if nonlinearity == "sigmoid" else nonlinearity
        if len(args) > 3:
            super().__init__(*args[:3], known, *args[4:], **kwargs)
        else:
            super().__init__(*args, nonlinearity=known, **kwargs)
        if nonlinearity == "sigmoid":
            self.mode, self.nonlinearity = "RNN_SIGMOID", nonlinearity

    def extra_repr(self):
        return super().extra_repr() + (", nonlinearity=sigmoid" if self.mode == "RNN_SIGMOID" else "")
