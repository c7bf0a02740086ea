"""The operators: opcheck, second gradients, fresh outputs, and nothing T-sized for gradients that do not exist."""

import pytest
import torch
from seqkernels.kernels.cells import CELLS
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from seqkernels import reference
from seqkernels.ops import attention, scan  # registers the operators

assert attention and scan
T, B, I, H = 3, 2, 3, 2
OP, BACKWARD = torch.ops.seqkernels.scan.default, torch.ops.seqkernels.scan_backward.default
ATTENTION = torch.ops.seqkernels.attention.default


def tensors(cell, D=2, bias=True, batch_first=False, dtype=torch.float64):
    """(cell, x, h_0, c_0, weights, batch_first), everything requiring gradients."""

    def make(*shape):
        return (torch.randn(shape, dtype=dtype) / 2).requires_grad_()

    rows = CELLS[cell].gates * H
    shapes = [(rows, I), (rows, H), *([(rows,)] * 2 if bias else [])] * D
    x = make(B, T, I) if batch_first else make(T, B, I)
    c_0 = make(D, B, H) if CELLS[cell].states == 2 else None
    return cell, x, make(D, B, H), c_0, [make(*s) for s in shapes], batch_first


def as_function(cell, batch_first=False, save=True):
    """The operator as a function of tensors alone, with its differentiable outputs."""
    states = CELLS[cell].states

    def function(*flat):
        x, h_0, *rest = flat
        c_0 = rest.pop(0) if states == 2 else None
        return torch.ops.seqkernels.scan(cell, x, h_0, c_0, rest, batch_first, save)[: 1 + states]

    return function


def flat(cell, x, h_0, c_0, weights, batch_first):
    return [t for t in (x, h_0, c_0, *weights) if t is not None]


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_scan(cell):
    given = (*tensors(cell, batch_first=cell == "gru"), cell != "rnn_relu")
    opcheck(OP, given, {"recompute": cell == "rnn_tanh"})


@pytest.mark.parametrize("needs, recompute", (((True, True), False), ((False, True), True), ((True, False), False)))
def test_opcheck_scan_backward(needs, recompute):
    given = tensors("lstm")
    y, h_n, _, states, gates = OP(*given, True, recompute=recompute)
    grads = (torch.randn_like(y).requires_grad_(), torch.randn_like(h_n).requires_grad_(), None)
    saved = (states.detach(), gates.detach())
    opcheck(BACKWARD, (given[0], *grads, *given[1:5], *saved, False, *needs))


@pytest.mark.parametrize("cell", ("lstm", "gru", "rnn_sigmoid"))
def test_first_and_second_gradients(cell):
    given = tensors(cell, bias=cell == "lstm")
    torch.autograd.gradcheck(as_function(cell), flat(*given))
    torch.autograd.gradgradcheck(as_function(cell), flat(*given))


def test_second_gradients_are_the_references():
    """Through h_n alone, with weights that need no gradient: no path of the recomputation is taken for granted."""
    cell, x, h_0, c_0, weights, _ = tensors("lstm", D=1)
    weights = [w.detach() for w in weights]

    def penalty(run):
        g = torch.autograd.grad(run(cell, x, h_0, c_0, weights, False).h_n.sum(), (x, c_0), create_graph=True)
        return torch.autograd.grad(sum((t**2).sum() for t in g), (x, h_0, c_0))

    def operator(*args):
        return reference.ScanOutput(*torch.ops.seqkernels.scan(*args, True)[:3])

    torch.testing.assert_close(penalty(operator), penalty(reference.scan))


def test_third_gradients():
    function, given = as_function("gru"), flat(*tensors("gru", D=1, bias=False))

    def first(*flat):
        return torch.autograd.grad(function(*flat)[0].pow(2).sum(), flat[0], create_graph=True)[0]

    torch.autograd.gradgradcheck(first, given)


def test_gradients_without_saved_gates_are_recomputed():
    given = flat(*tensors("lstm"))
    kept = torch.autograd.grad(as_function("lstm")(*given)[0].sum(), given)
    torch.testing.assert_close(torch.autograd.grad(as_function("lstm", save=False)(*given)[0].sum(), given), kept)


def test_outputs_share_no_memory():
    given = tensors("gru")
    outputs = [*OP(*given, True)]
    y, h_n, _, states, gates = outputs
    outputs += [t for t in BACKWARD("gru", y, h_n, None, *given[1:5], states, gates, False, True, True)[:3]]
    outputs += BACKWARD("gru", y, h_n, None, *given[1:5], states, gates, False, True, True)[3]
    stores = [t.untyped_storage().data_ptr() for t in outputs if t.numel()]
    assert len(set(stores)) == len(stores)


class Seen(TorchDispatchMode):
    """Records the operators that make a tensor of at least `size` elements."""

    def __init__(self, size):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            self.names.append(str(function))
        return out


def test_undefined_gradients_are_not_materialised():
    """A loss on h_n alone: no zeros in the place of the gradient of y."""
    cell, x, h_0, c_0, weights, _ = tensors("lstm", D=1)
    _, h_n, *_ = torch.ops.seqkernels.scan(cell, x, h_0, c_0, weights, False, True)
    loss = h_n.sum()
    with Seen(T * B * H) as seen:
        loss.backward()
    assert not [name for name in seen.names if "zeros" in name or "new_empty" in name]
    assert x.grad is not None


def test_gradients_of_both_biases_are_distinct_tensors():
    given = tensors("rnn_tanh", D=1)
    OP(*given, True)[0].sum().backward()
    b_ih, b_hh = given[4][2:]
    assert torch.equal(b_ih.grad, b_hh.grad)
    assert b_ih.grad.data_ptr() != b_hh.grad.data_ptr()


@pytest.mark.parametrize("batch, hidden", ((0, 2), (2, 0)))
def test_empty_batch_and_empty_state(batch, hidden):
    x = torch.randn(3, batch, 4, requires_grad=True)
    h_0 = torch.randn(1, batch, hidden)
    weights = [torch.randn(hidden, 4, requires_grad=True), torch.randn(hidden, hidden)]
    y, h_n, *_ = torch.ops.seqkernels.scan("rnn_tanh", x, h_0, None, weights, False, True)
    (y.sum() + h_n.sum()).backward()
    assert y.shape == (3, batch, hidden)
    assert not x.grad.any()


def test_saved_values_of_another_call_are_refused():
    given = tensors("lstm")
    y, h_n, _, states, gates = OP(*given, True)
    with pytest.raises(RuntimeError, match="gates"):
        BACKWARD("lstm", y, None, None, *given[1:5], states, gates[1:], False, True, True)


def attention_arguments(mask):
    q, k, v = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 3, 2), (2, 2, 4, 2), (2, 2, 4, 3))
    )
    mask = torch.randn(3, 4, dtype=torch.float64, requires_grad=True) if mask else None
    return q, k, v, mask


@pytest.mark.parametrize("mask", (False, True))
def test_attention_opcheck_and_gradients(mask):
    q, k, v, m = attention_arguments(mask)
    opcheck(ATTENTION, (q, k, v, m, False, None))

    def function(q, k, v, m=None):
        return torch.ops.seqkernels.attention(q, k, v, m, m is None, 0.7)[0]

    given = (q, k, v, m) if mask else (q, k, v)
    torch.autograd.gradcheck(function, given)
    torch.autograd.gradgradcheck(function, given)


def test_attention_backward_opcheck():
    q, k, v, _ = attention_arguments(False)
    out, lse = (t.detach() for t in ATTENTION(q, k, v, None, True, None))
    opcheck(torch.ops.seqkernels.attention_backward.default, (out, q, k, v, None, out, lse, True, None, 0.0, None))


def test_attention_backward_refuses_what_does_not_fit():
    q, k, v, _ = attention_arguments(False)
    out, lse = ATTENTION(q, k, v, None, True, None)
    with pytest.raises(RuntimeError, match="dout"):
        torch.ops.seqkernels.attention_backward(out[:1], q, k, v, None, out, lse, True, None, 0.0, None)
