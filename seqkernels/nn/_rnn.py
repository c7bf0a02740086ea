"""RNN, LSTM and GRU in the place of torch.nn's: same constructor, state dict and results, one kernel call a layer.

What no kernel serves runs as torch's own module would; `seqkernels.explain(module, *inputs)` says which path a call
takes.
"""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import reference
from ._dynamo import traceable
from ._recurrent import Recurrent


@traceable
class LSTM(Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM on this package's kernels. Arguments, attributes and results are torch.nn.LSTM's.

    learn_initial_state=True adds parameters h_0 (L*D, H) and c_0 (L*D, H), zero at first, which take the place of the
    zero state where hx is not given. Inputs: input (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or a
    PackedSequence; hx = (h_0, c_0), each (L*D, B, H), (L*D, H) unbatched. Returns (output, (h_n, c_n)).
    """


@traceable
class GRU(Recurrent, torch.nn.GRU):
    """torch.nn.GRU on this package's kernels. Arguments, attributes and results are torch.nn.GRU's.

    learn_initial_state=True adds the parameter h_0 (L*D, H), zero at first, which takes the place of the zero state
    where hx is not given. Inputs as LSTM's, with hx = h_0 (L*D, B, H). Returns (output, h_n).
    """


@traceable
class RNN(Recurrent, torch.nn.RNN):
    """torch.nn.RNN on this package's kernels; its nonlinearity may also be "sigmoid".

    Arguments, attributes and results are torch.nn.RNN's; learn_initial_state as in GRU. torch has no operator for
    "sigmoid": what the kernels do not serve then runs in plain torch operators (`seqkernels.reference`).
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

    def _fallback(self, input, hx):
        if self.mode != "RNN_SIGMOID":
            return super()._fallback(input, hx)
        if isinstance(input, PackedSequence):
            return self._packed_by_reference(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if input.dim() == 3 else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {kind[-3:]} but got {hx.dim()}-D tensor")
        x = input if input.dim() == 3 else input.unsqueeze(0 if self.batch_first else 1)
        self.check_input(x, None)
        if hx is not None:
            self.check_hidden_size(hx if input.dim() == 3 else hx.unsqueeze(1), self.get_expected_hidden_size(x, None))
        if x.shape[1 if self.batch_first else 0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return self._layers(input, hx, self._weights(), _reference_layer())

    def _packed_by_reference(self, packed, hx):
        x, lengths = pad_packed_sequence(packed)
        if hx is None:
            hx = x.new_zeros(self.get_expected_hidden_size(packed.data, packed.batch_sizes))
        self.check_forward_args(packed.data, hx, packed.batch_sizes)
        layer = _reference_layer(lengths.to(x.device))
        y, h_n, _ = self._stack(x, hx, None, self._weights(), False, layer)
        if packed.sorted_indices is not None:
            y, lengths = y.index_select(1, packed.sorted_indices), lengths[packed.sorted_indices.cpu()]
        data = pack_padded_sequence(y, lengths).data
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), h_n


def _reference_layer(lengths=None):
    def scan(cell, x, h_0, c_0, weights, batch_first):
        return reference.scan(cell, x, h_0, c_0, weights, batch_first, lengths=lengths)[:3]

    return scan
