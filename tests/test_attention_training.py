"""Attention in training on the CPU: the dropout of the reference, the short path, the modules, second gradients."""

import pytest
import torch
from attention_cases import assert_drops_right, inputs
from test_attention_backward import by_kernels

from seqkernels import explain, functional, nn
from seqkernels import reference as oracle
from seqkernels.ops import attention_cpu

SLOW_EACH = pytest.mark.parametrize(
    "dtype", (torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)), ids=("float32", "float64")
)


@SLOW_EACH
@pytest.mark.parametrize("p", (0.1, 0.5, 1.0))
@pytest.mark.parametrize("T, S, causal", ((1, 50, False), (33, 50, True), (70, 203, True), (40, 300, False)))
def test_dropout_is_the_references(T, S, causal, p, dtype):
    """Against the formulas with the dropped weights written out in plain torch operators."""
    given, (out, lse, *gradients) = assert_drops_right(by_kernels, T, S, causal, p, dtype)
    assert torch.equal(lse, by_kernels(*given[:6])[1])
    if p == 1:
        assert not any(x.any() for x in (out, *gradients))


@pytest.mark.parametrize("seed", (0, -1, (1 << 63) - 1, -(1 << 63), 0xFFFFFFFF, 1 << 32))
@SLOW_EACH
def test_the_kernels_drop_what_the_reference_drops(seed, dtype):
    """All weights are alike, so that an output tells which of them are kept: values that are one at one key each."""
    T, S, seed = 70, 203, torch.tensor([seed])
    q, k, v = torch.zeros(2, 3, T, 4, dtype=dtype), torch.zeros(2, 3, S, 4, dtype=dtype), torch.eye(S, dtype=dtype)
    out = attention_cpu.forward(q, k, v.expand(2, 3, S, S), None, False, None, 0.4, seed)
    wanted = oracle.dropout.multiplier(0.4, seed, (2, 3, T, S), dtype) / S
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("p", (0.0, 0.5))
@pytest.mark.parametrize("T", (1, 4, 40))
def test_a_training_call_runs_on_the_kernels(T, p, monkeypatch):
    """By the short path, to the same gradients as through the operator; few queries are not decoded."""
    given = [x.requires_grad_() for x in inputs(2, 4, T, 50, 8, 5, 2, torch.float64)]
    monkeypatch.setattr(attention_cpu, "decode", None)
    torch.manual_seed(3)
    out = functional.scaled_dot_product_attention(*given, dropout_p=p, enable_gqa=True, impl="kernel")
    torch.manual_seed(3)
    seed = oracle.dropout.draw_seed("cpu")
    operator = torch.ops.seqkernels.attention(*given, None, False, None, p, seed if p else None)[0]
    assert torch.equal(out, operator) and "_Recorded" in out.grad_fn.name()
    dout = torch.randn_like(out)
    gradients = torch.autograd.grad(out, given, dout)
    for a, b in zip(gradients, torch.autograd.grad(operator, given, dout), strict=True):
        assert torch.equal(a, b)
    wanted = oracle.scaled_dot_product_attention(*given, None, p, enable_gqa=True, seed=seed)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted, given, dout))


def test_second_gradients_of_the_short_path():
    given = [x.requires_grad_() for x in inputs(1, 2, 3, 4, 2, 3, 1, torch.float64)]

    def function(*given):
        return functional.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True, impl="kernel")

    torch.autograd.gradcheck(function, given)
    torch.autograd.gradgradcheck(function, given)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients_of_the_short_path():
    given = [x.requires_grad_() for x in inputs(1, 2, 5, 6, 8)]
    out = functional.scaled_dot_product_attention(*given, impl="kernel")
    douts = torch.randn(3, *out.shape)
    together = torch.autograd.grad(out, given, douts, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, given, dout, retain_graph=True) for dout in douts]
    for a, b in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b))


def test_gradients_of_some_inputs_and_of_none():
    q, k, v = inputs(1, 2, 5, 6, 8)
    for chosen in ((q,), (k,), (v,), (q, v)):
        for x in chosen:
            x.requires_grad_()
        out = functional.scaled_dot_product_attention(q, k, v, impl="kernel")
        gradients = torch.autograd.grad(out.sum(), chosen)
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(gradients, torch.autograd.grad(plain.sum(), chosen))
        for x in chosen:
            x.requires_grad_(False)
    assert not functional.scaled_dot_product_attention(q, k, v, impl="kernel").requires_grad


@pytest.mark.parametrize("mask", (None, "bool", "float", "causal"))
def test_a_module_trains_as_torchs(mask):
    kinds, options = (nn.MultiheadAttention, torch.nn.MultiheadAttention), {"dtype": torch.float64}
    ours, theirs = (kind(8, 2, batch_first=True, **options) for kind in kinds)
    theirs.load_state_dict(ours.state_dict())
    x, options = torch.randn(3, 20, 8, dtype=torch.float64), {"need_weights": False}
    if mask is not None:
        hidden = torch.ones(20, 20).triu(1).bool() if mask == "causal" else torch.rand(20, 20) < 0.3
        options["attn_mask"] = torch.randn(20, 20, dtype=torch.float64) if mask == "float" else hidden
        options["is_causal"] = mask == "causal"
    assert explain(ours, x, x, x, **options).path == "kernel"
    for module in (ours, theirs):
        module(x, x, x, **options)[0].square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_a_module_drops_out_in_training_alone():
    module, x = nn.MultiheadAttention(8, 2, dropout=0.5), torch.randn(20, 3, 8)
    assert explain(module, x, x, x, need_weights=False).path == "kernel"
    runs = [module(x, x, x, need_weights=False)[0] for _ in range(2)]
    assert not torch.equal(*runs)
    runs = [module.eval()(x, x, x, need_weights=False)[0] for _ in range(2)]
    assert torch.equal(*runs)


@SLOW_EACH
@pytest.mark.parametrize("p, save", ((0.0, False), (0.3, True), (0.3, False)))
def test_opcheck(p, save, dtype):
    q, k, v = (x.requires_grad_() for x in inputs(2, 4, 10, 12, 3, 2, 2, dtype))
    seed = torch.tensor([7]) if p else None
    torch.library.opcheck(torch.ops.seqkernels.attention.default, (q, k, v, None, True, None, p, seed, save))
    out, lse = (x.detach() for x in torch.ops.seqkernels.attention(q, k, v, None, True, None, p, seed, save))
    assert lse.dtype == dtype and lse.shape == ((2, 4, 10) if save else (0,))
    given = (out, q, k, v, None, out, lse, True, None, p, seed)
    torch.library.opcheck(torch.ops.seqkernels.attention_backward.default, given)


def test_what_was_not_saved_is_made_anew():
    given = [x.requires_grad_() for x in inputs(1, 2, 5, 6, 8)]
    saved, anew = (
        torch.autograd.grad(torch.ops.seqkernels.attention(*given, None, True, None, 0.0, None, save)[0].sum(), given)
        for save in (True, False)
    )
    for a, b in zip(saved, anew, strict=True):
        assert torch.equal(a, b)
    q, k, v = (x.detach() for x in given)
    with pytest.raises(RuntimeError, match=r"lse must be torch.float32 \[1, 2, 5\]"):
        torch.ops.seqkernels.attention_backward(q, q, k, v, None, q, q[..., :4, 0], True, None, 0.0, None)
