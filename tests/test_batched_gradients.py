"""A batch of upstream gradients at once, as vectorized Jacobians have them: as one after another."""

import pytest
import torch

from seqkernels import functional, nn


def check(outputs, inputs):
    """Gradients of the tensors `outputs` for three upstream gradients of each."""
    torch.manual_seed(1)
    upstream = [torch.randn(3, *o.shape) for o in outputs]
    batched = torch.autograd.grad(outputs, inputs, upstream, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        alone = torch.autograd.grad(outputs, inputs, [u[i] for u in upstream], retain_graph=True)
        for a, b in zip(batched, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_modules(kind):
    module, x = getattr(nn, kind)(5, 33, num_layers=2), torch.randn(7, 3, 5, requires_grad=True)
    y, states = module(x)
    check([y, *(states if kind == "LSTM" else [states])], [x, *module.parameters()])


@pytest.mark.parametrize("kind", ("LSTMCell", "GRUCell"))
def test_a_loop_of_a_cell(kind):
    cell, xs, state = getattr(nn, kind)(5, 33), torch.randn(4, 3, 5, requires_grad=True), None
    for x in xs:
        state = cell(x, state)
    check(list(state) if kind == "LSTMCell" else [state], [xs, *cell.parameters()])


def test_a_jacobian():
    ours, theirs = nn.LSTM(5, 9), torch.nn.LSTM(5, 9)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 5)
    made = [torch.autograd.functional.jacobian(lambda x, m=m: m(x)[0], x, vectorize=True) for m in (ours, theirs)]
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-5)


def test_rows_that_end_and_start_again():
    weights = [torch.randn(shape, requires_grad=True) for shape in ((24, 5), (24, 8))]
    x, h_0, again = (torch.randn(shape, requires_grad=True) for shape in ((6, 3, 5), (1, 3, 8), (1, 3, 8)))
    lengths, reset = torch.tensor([6, 2, 0]), torch.zeros(6, 3, dtype=torch.bool)
    reset[3, 0] = True
    given = {"lengths": lengths, "reset": reset, "reset_state": (again, None)}
    y, h_n, *_ = functional.scan("gru", x, h_0, None, weights, **given)
    check([y, h_n], [x, h_0, again, *weights])


def test_packed_sequences():
    module, x = nn.GRU(5, 9), torch.randn(7, 3, 5, requires_grad=True)
    y, h_n = module(torch.nn.utils.rnn.pack_padded_sequence(x, [7, 4, 1]))
    check([y.data, h_n], [x, *module.parameters()])
