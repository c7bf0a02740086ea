"""The cells, bound to torch in float64: forward against torch.nn's cells, backward against autograd."""

import pytest
import torch
from seqkernels.kernels.cells import CELLS

PRIMITIVES = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "dsigmoid": lambda y: y * (1 - y),
    "dtanh": lambda y: 1 - y * y,
    "drelu": lambda y: (y > 0).to(y.dtype),
}
TORCH_CELLS = {
    "rnn_tanh": torch.nn.RNNCell,
    "rnn_relu": lambda i, h: torch.nn.RNNCell(i, h, nonlinearity="relu"),
    "lstm": torch.nn.LSTMCell,
    "gru": torch.nn.GRUCell,
}
B, I, H = 5, 7, 11


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", TORCH_CELLS)
def test_forward_is_torchs(name):
    module = TORCH_CELLS[name](I, H).double()
    cell = CELLS[name]
    forward, _ = cell.bind(**PRIMITIVES)
    x, *states = drawn(B, I), *(drawn(B, H) for _ in range(cell.states))
    wanted = module(x, tuple(states) if cell.states == 2 else states[0])
    wanted = wanted if cell.states == 2 else (wanted,)
    inputs = torch.nn.functional.linear(x, module.weight_ih, module.bias_ih).chunk(cell.gates, 1)
    recurrent = torch.nn.functional.linear(states[0], module.weight_hh, module.bias_hh).chunk(cell.gates, 1)
    got, saved = forward(inputs, recurrent, states)
    assert len(got) == cell.states and len(saved) == cell.saved
    for ours, theirs in zip(got, wanted):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)


def test_sigmoid_rnn_is_the_equation():
    forward, _ = CELLS["rnn_sigmoid"].bind(**PRIMITIVES)
    x, u = drawn(B, H), drawn(B, H)
    (h,), _ = forward((x,), (u,), (drawn(B, H),))
    torch.testing.assert_close(h, 1 / (1 + torch.exp(-x - u)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", CELLS)
def test_backward_is_autograds(name):
    cell = CELLS[name]
    forward, backward = cell.bind(**PRIMITIVES)
    x, u = ([drawn(B, H) for _ in range(cell.gates)] for _ in range(2))
    s = [drawn(B, H) for _ in range(cell.states)]
    s_next, saved = forward(x, u, s)
    ds = [torch.randn(B, H, dtype=torch.float64) for _ in s_next]
    wanted = torch.autograd.grad(s_next, (*x, *u, *s), ds, materialize_grads=True, allow_unused=True)
    with torch.no_grad():
        dx, du, direct = backward(ds, saved, s, s_next)
    assert len(dx) == len(du) == cell.gates and len(direct) == cell.states
    got = (*dx, *du, *(torch.zeros(B, H) if d is None else d for d in direct))
    for ours, theirs in zip(got, wanted):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CELLS)
def test_shared_gradients_are_one_object(name):
    """Kernels store each distinct object once: dx and du must share objects exactly where they share values."""
    cell = CELLS[name]
    forward, backward = cell.bind(**PRIMITIVES)
    x, u, s = ([torch.randn(B, H) for _ in range(n)] for n in (cell.gates, cell.gates, cell.states))
    s_next, saved = forward(x, u, s)
    dx, du, _ = backward([torch.randn(B, H) for _ in s_next], saved, s, s_next)
    for a in dx:
        for b in du:
            assert (a is b) == torch.equal(a, b)
