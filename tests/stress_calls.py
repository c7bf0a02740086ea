"""Calls in every form that the CPU kernels serve, small enough to be made by the thousand, from any thread.

A form makes, for each of its users, a function without arguments that returns the same bits every time: modules,
inputs and caches are shared by all users; streams, and modules whose weights change, are a user's own.
"""

import copy
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

from seqkernels import Stream, functional, nn

FORMS = {}


class Form(NamedTuple):
    """weight: how often it is called, relative to others. small: torch shares none of its own operations out, for which
    a child of a fork would wait for ever; it does so from 32,768 elements on, and repeat_interleave, of rows that end
    early, always."""

    make: object
    weight: int
    small: bool


def form(weight=8, small=True):
    """Adds a form: `make()` prepares what is shared, and returns the function that makes a user's own call."""

    def add(make):
        FORMS[make.__name__] = Form(make, weight, small)
        return make

    return add


def prepare():
    """Name -> a function that makes a user's own call; the same inputs and weights every time."""
    torch.manual_seed(0)
    return {name: form.make() for name, form in FORMS.items()}


def forward(module, *inputs):
    """A user's call without a gradient of what all share."""

    def call():
        with torch.no_grad():
            return module(*inputs)

    return lambda: call


def training(module, x, *states):
    """A forward and every gradient, those of a shared module's parameters too, which it does not accumulate."""
    inputs = [x, *states]
    for tensor in inputs:
        tensor.requires_grad_()
    hx = () if not states else (states[0],) if len(states) == 1 else (tuple(states),)
    with torch.no_grad():
        directions = [torch.randn_like(t) for t in tree_leaves(module(x, *hx))]

    def call():
        results = tree_leaves(module(x, *hx))
        return results, torch.autograd.grad(results, [*inputs, *module.parameters()], directions)

    return lambda: call


@form(weight=4)
def lstm_of_one_row():
    """Threads share the units of each step, where there are two."""
    return forward(nn.LSTM(128, 128), torch.randn(80, 1, 128))


@form()
def gru_of_two_layers_in_both_directions():
    module = nn.GRU(13, 33, num_layers=2, bidirectional=True, batch_first=True)
    return forward(module, torch.randn(9, 13, 34).transpose(1, 2), torch.randn(4, 9, 33))


@form(weight=4)
def lstm_of_many_rows():
    """Threads share the rows."""
    return forward(nn.LSTM(40, 48), torch.randn(12, 50, 40))


@form()
def rnn_in_float64():
    return forward(nn.RNN(5, 33, nonlinearity="relu").double(), torch.randn(63, 3, 5, dtype=torch.float64))


@form()
def lstm_in_bfloat16():
    return forward(nn.LSTM(24, 40).bfloat16(), torch.randn(7, 6, 24).bfloat16())


@form()
def gru_with_weights_in_int8():
    module = nn.GRU(24, 70)
    module.weight_format = "int8"
    return forward(module, torch.randn(10, 1, 24))


@form(weight=32)
def lstm_cell():
    return forward(nn.LSTMCell(20, 33), torch.randn(2, 20), (torch.randn(2, 33), torch.randn(2, 33)))


@form(weight=32)
def gru_cell_in_float64():
    return forward(nn.GRUCell(20, 33).double(), torch.randn(3, 20).double(), torch.randn(3, 33).double())


@form(weight=16)
def stream():
    module, x = nn.LSTM(20, 33, num_layers=2), torch.randn(5, 2, 20)

    def own():
        mine = Stream(module)

        def call():
            mine.reset()
            return [mine(x_t).clone() for x_t in x], mine.state

        return call

    return own


@form(weight=4)
def lstm_training():
    states = (torch.randn(2, 18, 33) for _ in range(2))
    return training(nn.LSTM(20, 33, num_layers=2), torch.randn(7, 18, 20), *states)


@form(weight=4)
def gru_training_that_recomputes():
    return training(nn.GRU(12, 33, bidirectional=True, recompute=True), torch.randn(11, 5, 12), torch.randn(2, 5, 33))


@form(weight=4, small=False)
def lstm_training_in_leased_memory():
    """Gates of more than 4 MiB, whose memory is handed from call to call and from thread to thread."""
    return training(nn.LSTM(4, 16), torch.randn(72, 256, 4))


@form(weight=4, small=False)
def packed_rows():
    module, x = nn.LSTM(9, 33), torch.randn(12, 5, 9)
    packed = pack_padded_sequence(x, torch.tensor([12, 3, 7, 1, 12]), enforce_sorted=False)

    def call():
        with torch.no_grad():
            y, hx = module(packed)
        return y.data, hx

    return lambda: call


@form(weight=4, small=False)
def ragged_rows():
    weights = [w.detach().clone() for w in nn.GRU(9, 33).parameters()]
    x, h, reset = torch.randn(12, 4, 9), torch.randn(1, 4, 33), torch.rand(12, 4) < 0.2
    lengths = torch.tensor([12, 0, 5, 7])
    return lambda: lambda: functional.scan("gru", x, h, weights=weights, lengths=lengths, reset=reset)


@form(weight=2)
def attention():
    """Two threads, where there are two."""
    q, k, v = (torch.randn(1, 2, 203, 64) for _ in range(3))
    return lambda: lambda: functional.scaled_dot_product_attention(q, k, v)


@form(weight=2)
def attention_training():
    q, k, v = (torch.randn(1, n, 70, 32).requires_grad_() for n in (4, 2, 2))
    dout = torch.randn(1, 4, 70, 32)

    def call():
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out, torch.autograd.grad(out, (q, k, v), dout)

    return lambda: call


@form(weight=1)
def decode_of_many_keys():
    """Two threads, where there are two."""
    q, k, v = torch.randn(1, 8, 1, 64), torch.randn(1, 8, 2100, 64), torch.randn(1, 8, 2100, 64)
    return lambda: lambda: functional.scaled_dot_product_attention(q, k, v)


@form(weight=16)
def decode_of_a_growing_cache():
    q, k, v = torch.randn(2, 4, 2, 33), torch.randn(2, 2, 40, 33), torch.randn(2, 2, 40, 20)

    def call():
        attend, ends = functional.scaled_dot_product_attention, (3, 17, 40)
        return [attend(q, k[:, :, :end], v[:, :, :end], enable_gqa=True) for end in ends]

    return lambda: call


@form(weight=4)
def weights_that_change():
    x, first = torch.randn(3, 2, 9), nn.LSTM(9, 33)
    others = [[torch.randn_like(w) for w in first.parameters()] for _ in range(2)]

    def own():
        module, results = copy.deepcopy(first), []

        def call():
            results.clear()
            with torch.no_grad():
                for values in others:
                    for weight, value in zip(module.parameters(), values):
                        weight.copy_(value)
                    results.append(module(x))
            return results

        return call

    return own


@form(weight=12)
def modules_that_come_and_go():
    """Copies: a new one would draw weights under the lock of torch's generator, which a fork may leave locked."""
    x, first = torch.randn(3, 2, 9), nn.GRU(9, 33)

    def call():
        module = copy.deepcopy(first)
        with torch.no_grad():
            y = module(x)
            return y, module.double()(x.double()), module.float()(x)

    return lambda: call


@form(weight=4, small=False)
def operators_of_torch():
    """Products and sums of small integers, exact in any order."""
    a, b = (torch.randint(-8, 8, (150, 150)).float() for _ in range(2))
    x = torch.randint(-8, 8, (1 << 16,)).float()
    return lambda: lambda: (a @ b, x * 2 + 1, x.sum())
