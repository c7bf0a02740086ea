"""Attention in Triton, in its interpreter where there is no GPU: outputs, lse and gradients against float64."""

import itertools
import math
from functools import partial

import pytest
import torch
from attention_cases import assert_drops_right, assert_right, by_torch, exact, inputs
from device import INTERPRETED
from seqkernels.kernels.gpu.attention_configs import Config, config_for
from triton_attention_cases import DTYPES, SMALL, TALL, WIDE, by_triton


def check(q, k, v, mask=None, causal=False, scale=None, config=SMALL, dout=None):
    dout = torch.randn(*q.shape[:3], v.shape[3], dtype=q.dtype) if dout is None else dout
    ours = by_triton(q, k, v, dout, mask, causal, scale, config=config)
    assert_right(ours, q, k, v, mask, causal, scale, dout)
    return ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("T, S", ((1, 1), (1, 33), (33, 33), (33, 100), (100, 33), (100, 100)))
def test_lengths(T, S, causal, dtype):
    check(*inputs(1, 2, T, S, 16, dtype=dtype), causal=causal)


@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("config", (WIDE, TALL), ids=("wide", "tall"))
@pytest.mark.parametrize("T, S", ((40, 150), (150, 40), (1, 150), (128, 128)))
def test_lengths_where_blocks_are_not_square(T, S, config, causal):
    check(*inputs(1, 2, T, S, 5, 3, 1), causal=causal, config=config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D, E", ((1, 1), (8, 33), (33, 8), (64, 64), (80, 80), (128, 64), (1, 128)))
def test_sizes(D, E, dtype):
    check(*inputs(1, 1, 33, 40, D, E, dtype=dtype), causal=True)


@pytest.mark.skipif(INTERPRETED, reason="the sizes take hours in the interpreter: for GPUs")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("D", (64, 80, 128, 256))
def test_full_size(D, causal, dtype):
    check(*inputs(1, 2, 1000, 1000, D, dtype=dtype), causal=causal, config=None)


@pytest.mark.parametrize("config, heads", ((WIDE, 1), (TALL, 2), (None, 4), (SMALL, 2)))
def test_grouped_heads_and_blocks(config, heads):
    q, k, v = inputs(2, 4, 70, 50, 8, 4, heads)
    check(q, k, v, torch.rand(2, 4, 70, 50) < 0.7, causal=True, scale=0.7, config=config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((20, 50), (2, 1, 20, 50), (2, 2, 20, 50), (2, 1, 1, 50), (20, 1), (1, 2, 1, 1), ()))
def test_masks(shape, dtype):
    q, k, v = inputs(2, 2, 20, 50, 8, dtype=dtype)
    check(q, k, v, torch.rand(shape) < 0.7)
    check(q, k, v, torch.randn(shape, dtype=dtype).masked_fill(torch.rand(shape) < 0.3, -math.inf), causal=True)


def test_strides_are_free():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(2, 2, 33, 40, 8, 5, 1))
    dout = torch.randn(2, 33, 2, 5).transpose(1, 2)
    mask = torch.rand(50, 33).mT[:, :40] < 0.7
    plain = by_triton(*(x.contiguous() for x in (q, k, v, dout, mask)))
    expanded = torch.randn(1, 1, 1, 5).expand(2, 2, 33, 5)
    for a, b in zip(plain, by_triton(q, k, v, dout, mask), strict=True):
        assert torch.equal(a, b)
    check(q.mT.contiguous().mT, k[:, :, ::2], v[:, :, ::2], mask[:, ::2], dout=expanded)


@pytest.mark.parametrize("floats", (False, True))
def test_a_query_that_sees_no_key(floats):
    q, k, v = inputs(1, 2, 40, 50, 8)
    mask = torch.rand(40, 50) < 0.7
    mask[3], mask[32:] = False, False
    mask[5, :32] = False  # whole blocks hidden, later keys seen
    if floats:
        mask = torch.where(mask, 0.0, -math.inf)
    out, _, dq, dk, dv = check(q, k, v, mask)
    assert (out[:, :, 3] == 0).all() and (dq[:, :, 3] == 0).all()
    assert (out[:, :, 32:] == 0).all() and (dq[:, :, 32:] == 0).all()
    nothing = by_triton(q, k, v, torch.randn(1, 2, 40, 8), torch.zeros(40, 50, dtype=torch.bool))
    assert all((x == 0).all() for x in (nothing[0], *nothing[2:]))


@pytest.mark.parametrize("S", (0, 20))
def test_nothing_to_attend_to_or_nobody_to(S):
    for B, T, D, E in ((1, 20, 8, 5), (0, 20, 8, 5), (1, 0, 8, 5), (1, 3, 0, 5), (1, 3, 8, 0)):
        q, k, v = inputs(B, 2, T, S, D, E)
        out, lse, dq, dk, dv = by_triton(q, k, v, torch.randn(B, 2, T, E))
        wanted = exact(q, k, v, scale=1.0) if S and D == 0 else None
        assert (out.shape, lse.shape, dq.shape) == ((B, 2, T, E), (B, 2, T), q.shape)
        if S == 0:
            assert (out == 0).all() and (lse == -math.inf).all() and (dq == 0).all()
        if T == 0:
            assert (dk == 0).all() and (dv == 0).all()
        if wanted is not None:
            torch.testing.assert_close(out, wanted[0].float())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("where", ("q", "k", "v", "dout"))
def test_nan_flows_where_it_does_in_torch(where, value):
    tensors = dict(zip("qkv", inputs(1, 2, 40, 50, 8), strict=True), dout=torch.randn(1, 2, 40, 8))
    tensors[where][0, 1, 7, 3] = value
    mask = torch.rand(40, 50) < 0.7
    ours, theirs = by_triton(**tensors, mask=mask), by_torch(**tensors, mask=mask)
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), ours, theirs, strict=True):
        if name != "lse":
            assert torch.equal(a.isfinite(), b.isfinite()), name
            assert torch.equal(a.isnan(), b.isnan()) or value == math.inf, name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_key_of_the_future_does_not_reach_the_past():
    q, k, v = inputs(1, 1, 70, 70, 8)
    dout = torch.randn(1, 1, 70, 8)
    clean = by_triton(q, k, v, dout, causal=True)
    k[0, 0, 40] = math.nan
    out, lse, dq, _, _ = by_triton(q, k, v, dout, causal=True)
    assert torch.equal(out[:, :, :40], clean[0][:, :, :40]) and torch.equal(lse[:, :, :40], clean[1][:, :, :40])
    assert out[:, :, 40:].isnan().all() and lse[:, :, 40:].isnan().all() and dq[:, :, 40:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p, causal, config", ((0.2, False, WIDE), (0.7, True, TALL), (1.0, False, None)))
def test_dropout(p, causal, config, dtype):
    """Against the formulas with the dropped weights written out in plain torch operators."""
    given, (_, lse, *_) = assert_drops_right(partial(by_triton, config=config), 33, 50, causal, p, dtype)
    torch.testing.assert_close(lse, by_triton(*given[:6], config=config)[1])


def test_large_scores():
    q, k, v = inputs(1, 1, 33, 50, 8, size=30.0)
    check(q, k, v)
    check(q, k, v, torch.full((50,), -1e30))


def test_the_same_bits_every_time():
    arguments = *inputs(1, 4, 40, 50, 8, heads=2), torch.randn(1, 4, 40, 8)
    for a, b in zip(by_triton(*arguments), by_triton(*arguments), strict=True):
        assert torch.equal(a, b)


def test_every_size_has_blocks():
    for operation, option in itertools.product(("forward", "keys", "queries"), (None, "masked", "dropped")):
        for D, itemsize in itertools.product((1, 64, 80, 256), (2, 4)):
            for capability in (None, (8, 0), (9, 0), (12, 0)):
                assert isinstance(config_for(operation, D, itemsize, capability, option), Config)


def test_only_large_shared_memory_gets_blocks_for_it():
    for operation in ("forward", "keys", "queries"):
        old, large, small = (config_for(operation, 128, 2, capability) for capability in ((8, 0), (10, 3), (12, 0)))
        assert small == old != large
