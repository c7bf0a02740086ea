"""Autocast on a GPU, or with SEQKERNELS_IMPL=triton on a CPU: what torch lowers runs on the kernels, lowered."""

import copy

import pytest
import torch
from device import DEVICE, INTERPRETED

from seqkernels import _backends, functional, nn
from seqkernels.ops import autocast as _autocast

I, H, B, T = 8, 16, 3, 4
MODULES = {
    "RNN": lambda: nn.RNN(I, H, nonlinearity="relu"),
    "LSTM": lambda: nn.LSTM(I, H, num_layers=2, batch_first=True),
    "GRU": lambda: nn.GRU(I, H, bidirectional=True, bias=False),
    "LSTMCell": lambda: nn.LSTMCell(I, H),
    "MultiheadAttention": lambda: Attention(nn.MultiheadAttention(I, 2, batch_first=True)),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


class Attention(torch.nn.Module):
    """Self-attention under a mask of floating numbers."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    def fallback_reason(self, x):
        return self.attention.fallback_reason(x, x, x, need_weights=False)


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    """Triton takes CPU tensors."""
    monkeypatch.setattr(_backends, "chosen", "triton")


def lowering(dtype=torch.float16):
    return torch.autocast(DEVICE.type, dtype)


def input_of(module):
    return torch.randn(*(B, I) if isinstance(module, nn.LSTMCell) else (B, T, I), device=DEVICE)


def outputs_and_gradients(module, x):
    outputs = [t for t in torch.utils._pytree.tree_leaves(module(x)) if isinstance(t, torch.Tensor)]
    loss = sum((output.float() ** 2).sum() for output in outputs)
    return outputs, torch.autograd.grad(loss, list(module.parameters()))


@modules
def test_a_lowered_module_is_the_module_in_half_precision(make):
    module = make().to(DEVICE)
    x = input_of(module)
    with lowering():
        assert module.fallback_reason(x) is None
        outputs, gradients = outputs_and_gradients(module, x)
    exact = outputs_and_gradients(copy.deepcopy(module).half(), x.half())
    assert all(t.dtype == torch.float16 for t in outputs) and all(g.dtype == torch.float32 for g in gradients)
    for ours, theirs in zip((*outputs, *gradients), (*exact[0], *exact[1])):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=0)


def test_an_input_that_a_layer_before_has_lowered():
    model = torch.nn.Sequential(torch.nn.Linear(I, I), nn.LSTM(I, H)).to(DEVICE)
    with lowering():
        y, (h_n, c_n) = model(torch.randn(T, B, I, device=DEVICE))
    assert y.dtype == h_n.dtype == c_n.dtype == torch.float16


def test_compiled_in_one_graph():
    module = nn.GRU(I, H).to(DEVICE)
    x = torch.randn(T, B, I, device=DEVICE)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with lowering():
        outputs, gradients = outputs_and_gradients(compiled, x)
        eager = outputs_and_gradients(module, x)
    for ours, theirs in zip((*outputs, *gradients), (*eager[0], *eager[1])):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_functions():
    x, h = torch.randn(T, B, I, device=DEVICE), torch.randn(1, B, H, device=DEVICE)
    weights = [torch.randn(H, I, device=DEVICE), torch.randn(H, H, device=DEVICE)]
    q, mask = torch.randn(B, 2, T, I, device=DEVICE), torch.randn(T, T, device=DEVICE)
    with lowering():
        y = functional.scan("rnn_tanh", x, h, weights=weights, impl="kernel").y
        h_next, _ = functional.step("rnn_tanh", x[0], h[0].half(), weights=weights, impl="kernel")
        out = functional.scaled_dot_product_attention(q, q.half(), q, mask, impl="kernel")
    assert y.dtype == h_next.dtype == out.dtype == torch.float16
    lowered = [w.half() for w in weights]
    torch.testing.assert_close(y, functional.scan("rnn_tanh", x.half(), h.half(), weights=lowered).y)
    exact = functional.scaled_dot_product_attention(q.half(), q.half(), q.half(), mask.half(), impl="reference")
    torch.testing.assert_close(out, exact, rtol=2e-3, atol=2e-3)


def test_float64_and_integers_are_left_as_they_are():
    dtypes = torch.float64, torch.int64, torch.float32
    with lowering():
        wide, whole, half = _autocast.lowered(DEVICE, *(torch.ones(1, device=DEVICE, dtype=t) for t in dtypes))
    assert (wide.dtype, whole.dtype, half.dtype) == (torch.float64, torch.int64, torch.float16)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU the kernels take bfloat16")
def test_what_the_interpreter_gets_wrong_is_torchs():
    with lowering(torch.bfloat16):
        assert "autocast" in nn.LSTM(I, H).fallback_reason(torch.randn(T, B, I))
