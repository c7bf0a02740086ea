"""Decode on the CPU: few queries over the keys of a cache, against the float64 reference."""

import math

import pytest
import torch
from attention_cases import FLOATS, SIZES, check, inputs, reference

from seqkernels import functional
from seqkernels.ops import attention_cpu, decode_cpu, rows


def decode(q, k, v, mask, causal, scale):
    return decode_cpu.decode(q, k, v, scale)


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
        ours = decode_cpu.decode(q, k, v, length=length)
        exact = reference(q, k[:, :, :length], v[:, :, :length])
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
        assert torch.equal(ours, decode_cpu.decode(q, k[:, :, :length].contiguous(), v[:, :, :length].contiguous()))
    assert (decode_cpu.decode(q, k, v, length=0) == 0).all()
    for length in (-1, 1201):
        with pytest.raises(ValueError, match=f"between 0 and the 1200 keys of the cache, got {length}"):
            decode_cpu.decode(q, k, v, length=length)


@pytest.mark.parametrize("T", (1, 4))
def test_forward_gives_the_same_as_decode(T):
    q, k, v = inputs(2, 4, T, 50, 16, 16, 2)
    assert torch.equal(attention_cpu.forward(q, k, v), decode_cpu.decode(q, k, v))
    everything = attention_cpu.forward(q, k, v, torch.zeros(T, 50))
    torch.testing.assert_close(everything, decode_cpu.decode(q, k, v))


def test_nan_and_infinity():
    q, k, v = inputs(1, 3, 1, 2000, 16)
    k[0, 0, 1500, 2] = math.nan
    v[0, 1, 3, 5] = math.inf
    ours = decode_cpu.decode(q, k, v)
    assert ours[0, 0].isnan().all() and ours[0, 1, 0, 5] == math.inf and ours[0, 2].isfinite().all()
    q, k = q.abs(), k.nan_to_num().abs()
    k[0, 2, 7] = math.inf
    assert decode_cpu.decode(q, k, v)[0, 2].isnan().all()
    k[0, 2] = -math.inf
    assert (decode_cpu.decode(q, k, v)[0, 2] == 0).all()


def test_scratch_memory_is_written_before_it_is_read():
    q, k, v = inputs(1, 4, 2, 1100, 19, 23, 2)
    first = decode_cpu.decode(q, k, v)
    rows.scratch(1, torch.float32)[0].fill(math.nan)
    assert torch.equal(decode_cpu.decode(q, k, v), first)


def test_the_bits_do_not_depend_on_the_threads():
    q, k, v = inputs(1, 8, 1, 40_000, 64, 64, 2)
    alone = decode_cpu.decode(q, k, v)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(decode_cpu.decode(q, k, v), alone)


def cache_of(heads=2, capacity=40, D=8):
    return torch.randn(2, 1, heads, capacity, D)


def test_a_growing_cache_is_served_like_any_call():
    (k, v), q = cache_of(), torch.randn(1, 2, 1, 8)
    for S in (1, 5, 6, 7, 40, 3):
        ours = functional.scaled_dot_product_attention(q, k[:, :, :S], v[:, :, :S])
        assert torch.equal(ours, decode_cpu.decode(q, k, v, length=S))
        dense = functional.scaled_dot_product_attention(q, k[:, :, :S].contiguous(), v[:, :, :S].contiguous())
        assert torch.equal(ours, dense), "a cache that torch.cat made: its strides change with its length"
    scaled = functional.scaled_dot_product_attention(q, k[:, :, :9], v[:, :, :9], scale=0.1)
    assert torch.equal(scaled, decode_cpu.decode(q, k, v, 0.1, length=9))


def test_the_call_after_a_decode_may_be_another():
    (k, v), q = cache_of(), torch.randn(1, 2, 1, 8)
    functional.scaled_dot_product_attention(q, k, v)
    with pytest.raises(RuntimeError, match="same length"):
        functional.scaled_dot_product_attention(q, k, v[:, :, :5])
    assert functional.scaled_dot_product_attention(q, k[:, :, :0], v[:, :, :0]).eq(0).all()
    for tensors in ((q.double(), k.double(), v.double()), (q.mT.contiguous().mT, k, v), (q, k.mT.contiguous().mT, v)):
        theirs = torch.nn.functional.scaled_dot_product_attention(*tensors)
        torch.testing.assert_close(functional.scaled_dot_product_attention(*tensors), theirs)
    assert functional.scaled_dot_product_attention(q.requires_grad_(), k, v).requires_grad


def test_a_gradient_is_recorded_after_a_decode_without():
    (k, v), q = cache_of(), torch.randn(1, 2, 1, 8, requires_grad=True)
    with torch.no_grad():
        functional.scaled_dot_product_attention(q, k, v)
        functional.scaled_dot_product_attention(q, k, v)
    assert functional.scaled_dot_product_attention(q, k, v).requires_grad


def test_grouped_heads_after_a_decode_still_have_to_be_asked_for():
    (k, v), q = cache_of(), torch.randn(1, 4, 1, 8)
    for _ in range(2):
        functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    with pytest.raises(RuntimeError):
        functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_a_storage_that_shrank_after_a_decode_raises(which):
    (k, v), q = (t.clone() for t in cache_of()), torch.randn(1, 2, 1, 8)
    tensors = {"query": q, "key": k, "value": v}
    for _ in range(2):
        functional.scaled_dot_product_attention(**tensors)
    tensors[which].untyped_storage().resize_(4)
    with pytest.raises(RuntimeError, match=f"{which} needs"):
        functional.scaled_dot_product_attention(**tensors)


def test_tracers_and_modes_see_the_call_after_a_decode():
    (k, v), q = cache_of(), torch.randn(1, 2, 1, 8)
    functional.scaled_dot_product_attention(q, k, v)
    traced = torch.func.vmap(lambda q: functional.scaled_dot_product_attention(q, k, v))(torch.stack([q, q]))
    torch.testing.assert_close(traced[0], functional.scaled_dot_product_attention(q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
    compiled = torch.compile(functional.scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), functional.scaled_dot_product_attention(q, k, v))


def test_a_function_mode_sees_the_call_after_a_decode():
    class Seen(torch.overrides.TorchFunctionMode):
        names = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    (k, v), q = cache_of(), torch.randn(1, 2, 1, 8)
    expected = functional.scaled_dot_product_attention(q, k, v)
    with Seen() as mode:
        assert torch.equal(functional.scaled_dot_product_attention(q, k, v), expected)
    assert any("attention" in name for name in mode.names)
