"""Decode on the CPU: few queries over the keys of a cache, against the float64 reference."""

import math

import pytest
import torch
from attention_cases import FLOATS, SIZES, check, inputs, reference

from seqkernels.ops import attention_cpu


def decode(q, k, v, mask, causal, scale):
    return attention_cpu.decode(q, k, v, scale)


@pytest.mark.parametrize("S", (1, 2, 15, 16, 17, 63, 64, 65, 1024, 1025, 3000))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_long_and_short_caches(dtype, S):
    for T, D, Dv in ((1, 64, 64), (2, 33, 80), (4, 8, 200)):
        check(decode, *inputs(1, 2, T, S, D, Dv, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sizes(dtype):
    for D in SIZES:
        for Dv in SIZES:
            check(decode, *inputs(2, 4, 1, 100, D, Dv, dtype=dtype))


@pytest.mark.parametrize("N, heads", ((4, 4), (8, 2), (6, 1)))
@pytest.mark.parametrize("T", (1, 3, 4))
def test_grouped_heads(T, N, heads):
    for S in (20, 1500):
        check(decode, *inputs(3, N, T, S, 40, 24, heads))


@pytest.mark.parametrize("size", (1e-3, 30.0))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_and_large_inputs(dtype, size):
    check(decode, *inputs(1, 2, 1, 2500, 64, dtype=dtype, size=size))


@pytest.mark.parametrize("scale", (0.0, 0.3, -0.5, 10.0))
def test_scale(scale):
    check(decode, *inputs(1, 2, 2, 1100, 16), scale=scale)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_non_contiguous_caches_up_to_a_length(dtype):
    """Neither the heads' order in the cache nor what lies beyond the length matters; nothing beyond it is read."""
    q = torch.randn(2, 4, 1, 24, dtype=dtype)
    for length in (1, 37, 1030):
        caches = []
        for size in (24, 40):
            cache = torch.full((2, 1200, 2, size), math.nan, dtype=dtype)
            cache[:, :length] = torch.randn(2, length, 2, size, dtype=dtype)
            caches.append(cache.transpose(1, 2))
        k, v = caches
        ours = attention_cpu.decode(q, k, v, length=length)
        exact = reference(q, k[:, :, :length], v[:, :, :length])
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
        assert torch.equal(ours, attention_cpu.decode(q, k[:, :, :length].contiguous(), v[:, :, :length].contiguous()))
    assert (attention_cpu.decode(q, k, v, length=0) == 0).all()
    for length in (-1, 1201):
        with pytest.raises(ValueError, match=f"between 0 and the 1200 keys of the cache, got {length}"):
            attention_cpu.decode(q, k, v, length=length)


@pytest.mark.parametrize("T", (1, 4))
def test_forward_gives_the_same_as_decode(T):
    q, k, v = inputs(2, 4, T, 50, 16, 16, 2)
    assert torch.equal(attention_cpu.forward(q, k, v), attention_cpu.decode(q, k, v))
    everything = attention_cpu.forward(q, k, v, torch.zeros(T, 50))
    torch.testing.assert_close(everything, attention_cpu.decode(q, k, v))


def test_nan_and_infinity():
    q, k, v = inputs(1, 3, 1, 2000, 16)
    k[0, 0, 1500, 2] = math.nan
    v[0, 1, 3, 5] = math.inf
    ours = attention_cpu.decode(q, k, v)
    assert ours[0, 0].isnan().all() and ours[0, 1, 0, 5] == math.inf and ours[0, 2].isfinite().all()
    q, k = q.abs(), k.nan_to_num().abs()
    k[0, 2, 7] = math.inf
    assert attention_cpu.decode(q, k, v)[0, 2].isnan().all()
    k[0, 2] = -math.inf
    assert (attention_cpu.decode(q, k, v)[0, 2] == 0).all()


def test_scratch_memory_is_written_before_it_is_read():
    q, k, v = inputs(1, 4, 2, 1100, 19, 23, 2)
    first = attention_cpu.decode(q, k, v)
    attention_cpu._workspace(1, torch.float32)[0].fill(math.nan)
    assert torch.equal(attention_cpu.decode(q, k, v), first)


def test_the_bits_do_not_depend_on_the_threads():
    q, k, v = inputs(1, 8, 1, 40_000, 64, 64, 2)
    alone = attention_cpu.decode(q, k, v)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(attention_cpu.decode(q, k, v), alone)
