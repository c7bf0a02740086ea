"""The public functions: the kernels against the reference, impl=, and what goes where."""

import pytest
import torch
from seqkernels.kernels.cells import CELLS
from torch.nn import functional as F

from seqkernels import functional, reference

I, H = 5, 19


def layer(cell, D=1, T=4, B=3, bias=True, dtype=torch.float64):
    """x, h_0, c_0, weights, all requiring gradients; weights small as torch.nn's, so that errors stay small over T."""
    rows = CELLS[cell].gates * H
    shapes = [(rows, I), (rows, H), *([(rows,)] * 2 if bias else [])] * D

    def make(*shape):
        return (torch.randn(shape, dtype=dtype) / H**0.5 / 2).requires_grad_()

    c_0 = make(D, B, H) if CELLS[cell].states == 2 else None
    return make(T, B, I), make(D, B, H), c_0, [make(*s) for s in shapes]


@pytest.mark.parametrize("T, B", ((1, 1), (3, 2), (63, 17)))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell", CELLS)
def test_kernel_agrees_with_reference(cell, D, T, B):
    x, h_0, c_0, weights = layer(cell, D, T, B, bias=T != 3)
    results = []
    for impl in ("kernel", "reference"):
        out = functional.scan(cell, x, h_0, c_0, weights, impl=impl)
        loss = sum((i + 1) * t.sin().sum() for i, t in enumerate(out) if t is not None)
        wanted = [t for t in (x, h_0, c_0, *weights) if t is not None]
        results.append((out[:2], torch.autograd.grad(loss, wanted)))
        assert (out.c_n is None) == (c_0 is None)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("D, bias", ((1, True), (1, False), (2, True), (2, False)))
def test_default_states_and_directions(D, bias):
    x, h_0, c_0, weights = layer("lstm", D, bias=bias)
    given = functional.scan("lstm", x, torch.zeros_like(h_0), torch.zeros_like(c_0), weights)
    torch.testing.assert_close(functional.scan("lstm", x, weights=weights), given)


def test_batch_first_is_a_transposition():
    x, h_0, _, weights = layer("gru", 2)
    for impl in ("kernel", "reference"):
        out = functional.scan("gru", x, h_0, None, weights, impl=impl)
        turned = functional.scan("gru", x.transpose(0, 1), h_0, None, weights, batch_first=True, impl=impl)
        torch.testing.assert_close(turned.y, out.y.transpose(0, 1))
        torch.testing.assert_close(turned.h_n, out.h_n)


@pytest.mark.parametrize("cell", CELLS)
def test_step(cell):
    x, h_0, c_0, weights = layer(cell)
    c = None if c_0 is None else c_0[0]
    for impl in ("auto", "kernel"):
        stepped = functional.step(cell, x[0], h_0[0], c, weights, impl=impl)
        torch.testing.assert_close(stepped, functional.step(cell, x[0], h_0[0], c, weights, impl="reference"))


@pytest.mark.parametrize("option", ("lengths", "reset", "return_states"))
def test_options_of_the_scan_run_on_the_kernels(option):
    x, h_0, _, weights = layer("gru")
    value = {"lengths": torch.tensor([4, 0, 2]), "reset": torch.rand(4, 3) < 0.5, "return_states": True}[option]
    theirs = reference.scan("gru", x, h_0, None, weights, **{option: value})
    with torch.no_grad():
        for impl in ("auto", "kernel"):
            ours = functional.scan("gru", x, h_0, None, weights, **{option: value}, impl=impl)
            torch.testing.assert_close(ours, theirs)


def test_impl_kernel_says_every_reason():
    x, h_0, _, weights = (t.half() if isinstance(t, torch.Tensor) else t for t in layer("gru"))
    weights = [w.half() for w in weights]
    functional.scan("gru", x, h_0, None, weights)
    x.requires_grad_()
    with pytest.raises(NotImplementedError, match=r"return_states= where.*; x is torch.float16.*weights\[3\]"):
        functional.scan("gru", x, h_0, None, weights, return_states=True, impl="kernel")


def test_auto_under_vmap():
    x, h_0, _, weights = layer("gru")
    out = torch.vmap(lambda v: functional.scan("gru", v.unsqueeze(1), h_0[:, :1], None, weights).y, in_dims=1)(x)
    torch.testing.assert_close(out[2], functional.scan("gru", x[:, 2:], h_0[:, :1], None, weights).y)


ATTENTION = {
    "full": ((2, 4, 33, 16), (2, 4, 70, 16), (2, 4, 70, 8), {}),
    "causal": ((2, 4, 65, 16), (2, 4, 65, 16), (2, 4, 65, 16), {"is_causal": True}),
    "causal, more keys": ((1, 2, 5, 8), (1, 2, 9, 8), (1, 2, 9, 8), {"is_causal": True}),
    "grouped": ((1, 8, 20, 16), (1, 2, 20, 16), (1, 2, 20, 16), {"enable_gqa": True}),
    "scale": ((1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8), {"scale": 0.1}),
    "three dimensions": ((4, 33, 16), (4, 70, 16), (4, 70, 8), {}),
    "one query": ((2, 4, 1, 16), (2, 4, 70, 16), (2, 4, 70, 16), {}),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("mask", ("none", "bool", "float", "row", "per head"))
@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_attention_agrees_with_torch_and_reference(case, mask, dtype):
    *shapes, options = case
    q, k, v = (torch.randn(s, dtype=dtype) for s in shapes)
    T, S, N = q.shape[-2], k.shape[-2], q.shape[-3]
    masks = {
        "bool": torch.rand(T, S) < 0.7,
        "float": torch.randn(T, S, dtype=dtype),
        "row": torch.rand(1, 1, S) < 0.7 if q.dim() == 3 else torch.rand(q.shape[0], 1, 1, S) < 0.7,
        "per head": torch.rand(N, T, S) < 0.7,
    }
    given = (q, k, v, None if options.get("is_causal") else masks.get(mask), 0.0)
    ours = functional.scaled_dot_product_attention(*given, **options, impl="kernel")
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(*given, **options))
    torch.testing.assert_close(ours, functional.scaled_dot_product_attention(*given, **options, impl="reference"))


def test_attention_that_goes_to_torch():
    q = torch.randn(2, 2, 5, 8)
    served = functional.attention_reasons
    assert not served(q, q, q)
    assert not served(q.clone().requires_grad_(), q, q, dropout_p=0.5)
    assert "gradient" in served(q, q, q, torch.zeros(5, 5, requires_grad=True))[0]
    assert "dropout" in served(q, q, q, dropout_p=1.5)[0]
    assert "float16" in served(q.half(), q, q)[0]
    assert "broadcast" in served(q, q[:1], q[:1])[0]
    assert "refuses" in served(q, q, q, torch.ones(5, 5).bool(), is_causal=True)[0]
    assert served(q[0, 0], q[0, 0], q[0, 0])
    torch.testing.assert_close(
        functional.scaled_dot_product_attention(q, q[:1], q[:1]), F.scaled_dot_product_attention(q, q[:1], q[:1])
    )
    for bad in ((q, q[..., :4], q), (q, q[:, :1].expand(2, 3, 5, 8), q)):
        with pytest.raises(RuntimeError) as theirs:
            F.scaled_dot_product_attention(*bad)
        with pytest.raises(RuntimeError) as ours:
            functional.scaled_dot_product_attention(*bad)
        assert str(ours.value) == str(theirs.value)
        with pytest.raises(NotImplementedError, match="sizes"):
            functional.scaled_dot_product_attention(*bad, impl="kernel")
    with pytest.raises(RuntimeError, match="key and value to have the same length, got 5 and 3"):
        functional.scaled_dot_product_attention(q, q, q[:, :, :3])
    wanted = torch.zeros(5, 5, requires_grad=True)
    functional.scaled_dot_product_attention(q, q, q, wanted).sum().backward()
    assert wanted.grad is not None


def test_attention_of_strided_and_negated_views():
    x = torch.randn(2, 5, 4, 8)
    q = x.transpose(1, 2)
    k = torch.randn(2, 5, 4, 8, dtype=torch.complex64).conj().imag.transpose(1, 2)
    out = functional.scaled_dot_product_attention(q, k, k[..., ::2], impl="kernel")
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, k[..., ::2]))
