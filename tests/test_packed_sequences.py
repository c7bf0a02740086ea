"""Modules given a PackedSequence: results, gradients and orders as torch.nn's, on the kernels."""

import pytest
import torch
from test_modules import KINDS, OPTIONS, I, close, gradients, pair
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import seqkernels
from seqkernels import nn

LENGTHS = {"sorted": [7, 7, 4, 1], "unsorted": [4, 7, 1, 7, 2], "equal": [3, 3], "one row": [5]}


def packed(lengths, dtype=torch.float64):
    """A PackedSequence, sorted by torch where the lengths do not fall, and what gradients can be asked for: its
    data."""
    falling = lengths == sorted(lengths, reverse=True)
    made = pack_sequence([torch.randn(n, I, dtype=dtype) for n in lengths], enforce_sorted=falling)
    data = made.data.requires_grad_()
    return data, made._replace(data=data)


def states(module, B):
    """Random ones, as a tensor or a pair."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h, c = (torch.randn(rows, B, module.hidden_size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return (h, c) if isinstance(module, torch.nn.LSTM) else h


def assert_same(ours, theirs, x, hx, data):
    a, b = ours(x, hx), theirs(x, hx)
    assert isinstance(a[0], PackedSequence)
    for mine, yours in zip(a[0], b[0]):  # data, batch_sizes, sorted_indices, unsorted_indices
        assert (mine is None) == (yours is None)
        if mine is not None:
            close(mine, yours)
    close(a[1], b[1])
    given = [data] if hx is None else [data, hx]
    close(gradients(ours, a, given), gradients(theirs, b, given))
    with torch.no_grad():
        close(ours(x, hx)[0].data, b[0].data)
        close(ours(x, hx)[1], b[1])
    assert seqkernels.explain(ours, x, hx).path == "kernel"


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_are_torchs(kind, options, lengths):
    ours, theirs = pair(kind, **options)
    data, x = packed(lengths)
    for hx in (None, states(ours, len(lengths))):
        assert_same(ours, theirs, x, hx, data)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_drops_what_torch_drops(kind):
    ours, theirs = pair(kind, num_layers=3, dropout=0.5, bidirectional=True)
    data, x = packed(LENGTHS["unsorted"])
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        out = module(x)
        results.append([out[0].data, *gradients(module, out, [data])])
    close(*results)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_learned_initial_state_and_less_memory(recompute):
    lstm = nn.LSTM(I, 6, 2, bidirectional=True, learn_initial_state=True, recompute=recompute, dtype=torch.float64)
    for name in ("h_0", "c_0"):
        torch.nn.init.normal_(getattr(lstm, name))
    data, x = packed(LENGTHS["unsorted"])
    given = tuple(s.unsqueeze(1).expand(-1, x.batch_sizes[0], -1) for s in (lstm.h_0, lstm.c_0))
    results = []
    for out in (lstm(x), torch.nn.LSTM.forward(lstm, x, given)):
        results.append([out[0].data, *out[1], *gradients(lstm, out, [data])])
    close(*results)


def test_sigmoid_agrees_with_the_reference():
    rnn = nn.RNN(I, 6, nonlinearity="sigmoid", bidirectional=True, dtype=torch.float64)
    data, x = packed(LENGTHS["unsorted"])
    ours, theirs = rnn(x), rnn._by_reference(x, None)
    close(ours[0].data, theirs[0].data)
    close(gradients(rnn, ours, [data]), gradients(rnn, theirs, [data]))


def test_padding_that_is_nan_reaches_nothing():
    gru, lengths = nn.GRU(I, 6, bidirectional=True), torch.tensor([2, 4, 1])
    x = torch.randn(4, 3, I)
    x[torch.arange(4)[:, None] >= lengths] = float("nan")
    y, h_n = gru(pack_padded_sequence(x, lengths, enforce_sorted=False))
    padded, ends = pad_packed_sequence(y)
    assert padded.isfinite().all() and h_n.isfinite().all() and ends.tolist() == lengths.tolist()


def test_data_of_any_strides():
    ours, theirs = pair("GRU", bidirectional=True)
    _, x = packed(LENGTHS["sorted"])
    wide = torch.zeros(2 * len(x.data), 3 * I, dtype=torch.float64)
    for view in (wide[::2, I : 2 * I], wide[: len(x.data), ::3]):
        view.copy_(x.data.detach())
        given = PackedSequence(view, x.batch_sizes)
        close(ours(given)[0].data, theirs(given)[0].data)


def test_what_no_kernel_takes_is_torchs():
    _, x = packed(LENGTHS["unsorted"], torch.float32)
    lstm = nn.LSTM(I, 6, proj_size=2)
    assert seqkernels.explain(lstm, x).path == "torch"
    close(lstm(x)[0].data, torch.nn.LSTM.forward(lstm, x)[0].data)
    lstm = nn.LSTM(I, 6)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        lstm(x, (torch.zeros(1, 5, 7),) * 2)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        nn.LSTM(I + 1, 6)(x)


def test_batch_sizes_that_do_not_fit_are_refused():
    x, h, weights = torch.zeros(5, 3), torch.zeros(1, 3, 4), [torch.zeros(4, 3), torch.zeros(4, 4)]
    scan = torch.ops.seqkernels.scan
    for sizes in ([3, 1], [3, 3], [2, 3], [3, 2, 0], [3, -1, 3], [1, 1, 3], [4, 1]):
        with pytest.raises(ValueError, match="batch_sizes must fall from 3"):
            scan("rnn_tanh", x, h, None, weights, False, False, batch_sizes=torch.tensor(sizes))
    with pytest.raises(ValueError, match="must be int64"):
        scan("rnn_tanh", x, h, None, weights, False, False, batch_sizes=torch.tensor([3.0, 2.0]))
    with pytest.raises(ValueError, match="and so are lengths or reset"):
        both = {"lengths": torch.tensor([2, 2, 1]), "batch_sizes": torch.tensor([3, 2])}
        scan("rnn_tanh", x, h, None, weights, False, False, **both)


def test_compiled_whole():
    """Where the lengths do not fall, a compiler knows the number of rows; with a state given too."""
    gru = nn.GRU(I, 6, 2, bidirectional=True, dtype=torch.float64)
    data, x = packed(LENGTHS["unsorted"])
    compiled = torch.compile(gru, backend="aot_eager", fullgraph=True)
    for hx in (None, states(gru, 5)):
        ours, theirs = compiled(x, hx), gru(x, hx)
        close(ours[0].data, theirs[0].data)
        close(ours[1], theirs[1])
        close(gradients(gru, ours, [data]), gradients(gru, theirs, [data]))
