"""The fallback where torch has none: a sigmoid nonlinearity, and torch.vmap, in plain torch operators.

torch has no operator for the former, and no batching rule for its recurrent operators. Errors are torch.nn's.
"""

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import reference


def recurrent(module, input, hx):
    """What an RNN, LSTM or GRU returns for any input that torch.nn takes."""
    if isinstance(input, PackedSequence):
        return _packed(module, input, hx)
    kind = type(module).__name__
    if input.dim() not in (2, 3):
        raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(0 if module.batch_first else 1)
    module.check_input(x, None)
    for s in _states(module, hx):
        if s.dim() != input.dim():
            given = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {given} input, hx should also be {given[-3:]} but got {s.dim()}-D tensor")
        module.check_hidden_size(s if batched else s.unsqueeze(1), module.get_expected_hidden_size(x, None))
    if x.shape[1 if module.batch_first else 0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return module._run(input, hx, module._weights(), _layer())


def _states(module, hx):
    states = module._given_states(hx)
    if states is None:
        wanted = "a pair of tensors" if module._has_c else "a tensor"
        raise TypeError(f"hx must be {wanted}, got {type(hx).__name__}")
    return states


def _packed(module, packed, hx):
    x, lengths = pad_packed_sequence(packed)
    if hx is None:
        hx = x.new_zeros(module.get_expected_hidden_size(packed.data, packed.batch_sizes))
    module.check_forward_args(packed.data, hx, packed.batch_sizes)
    y, h_n, _ = module._stack(x, hx, None, module._weights(), False, _layer(lengths.to(x.device)))
    if packed.sorted_indices is not None:
        y, lengths = y.index_select(1, packed.sorted_indices), lengths[packed.sorted_indices.cpu()]
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), h_n


def _layer(lengths=None):
    def scan(cell, x, h_0, c_0, weights, batch_first, recompute=False):
        return reference.scan(cell, x, h_0, c_0, weights, batch_first, lengths=lengths)[:3]

    return scan


def cell(module, input, hx):
    """What an RNNCell, LSTMCell or GRUCell returns for any input that torch.nn takes."""
    kind = type(module).__name__
    states = module._given_states(hx)
    if states is None:
        raise TypeError(f"hx must be {'a pair of tensors' if module._has_c else 'a tensor'}, got {type(hx).__name__}")
    for name, value in (("input", input), *(("hidden", s) for s in states)):
        if value.dim() not in (1, 2):
            raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {value.dim()}D instead")
    if input.shape[-1] != module.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {module.input_size}")
    for s in states:
        if s.shape != (*input.shape[:-1], module.hidden_size):
            expected = (*input.shape[:-1], module.hidden_size)
            raise RuntimeError(f"Expected hidden size {expected}, got {list(s.shape)}")
    return module._run(input, hx, module._weights(), _layer())
