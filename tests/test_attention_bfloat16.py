"""Attention of bfloat16 on the CPU against float64, with the CPU's own instruction and without.

Every element has a bound of its own, which follows from what is rounded to bfloat16: the weights and the result.
"""

import math
import subprocess
import sys

import pytest
import torch
from attention_cases import SIZES, added, partly_blind
from seqkernels.kernels.cpu import target
from test_attention import LENGTHS, MASKS
from test_bfloat16_cpu import AVX512, WITHOUT
from test_target import AVX2
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from seqkernels import dropout
from seqkernels.ops import attention_cpu, rows

HALF = 2.0**-8  # the largest relative error of rounding to bfloat16
SINGLE = 1.05  # what float32 adds to that
BOTH = pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))


def inputs(B, N, T, S, D, Dv=None, heads=None):
    shapes = (B, N, T, D), (B, heads or N, S, D), (B, heads or N, S, D if Dv is None else Dv)
    return [torch.randn(shape).bfloat16() for shape in shapes]


def right(q, k, v, mask=None, causal=False, scale=None, p=0.0, seed=None):
    """out and lse in float64, and the largest errors that rounding allows out."""
    q, k, v = q.double(), *(x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scale = scale if scale is not None else q.shape[3] ** -0.5
    scores = q @ k.mT * scale + added(mask, causal, q.shape[2], k.shape[2])
    weights = scores.softmax(3).masked_fill((scores == -math.inf).all(3, keepdim=True), 0.0)
    weights = weights * dropout_of(p, seed, weights)
    out = weights @ v
    return out, scores.logsumexp(3), SINGLE * HALF * (out.abs() + weights @ v.abs())


def dropout_of(p, seed, weights):
    return dropout.multiplier(p, seed, weights.shape, weights.dtype) if p else 1.0


def check(q, k, v, mask=None, causal=False, scale=None, p=0.0, seed=None):
    given = mask, causal, scale, p, seed
    out, lse = attention_cpu.with_lse(q, k, v, *given)
    wanted, sums, allowed = right(q, k, v, *given)
    assert out.dtype == torch.bfloat16 and out.is_contiguous() and lse.dtype == torch.float32
    assert ((out - wanted).abs() <= allowed).all(), ((out - wanted).abs() - allowed).max()
    torch.testing.assert_close(lse.double(), sums, rtol=4 * torch.finfo(torch.float32).eps, atol=2e-6)
    if not attention_cpu.is_decode(q.shape[2], k.shape[2], mask, causal, p):
        assert torch.equal(attention_cpu.forward(q, k, v, *given), out)
    return out


@BOTH
def test_lengths_and_sizes(causal):
    for i, T in enumerate(LENGTHS):
        for j, S in enumerate(LENGTHS):
            for D, Dv in ((SIZES[i], SIZES[j]), (SIZES[j], SIZES[i - 1])):
                check(*inputs(1, 2, T, S, D, Dv), None, causal)


@BOTH
@pytest.mark.parametrize("T, S", ((600, 600), (70, 1001), (1000, 70)))
def test_long(T, S, causal):
    check(*inputs(1, 2, T, S, 64), None, causal)


@pytest.mark.parametrize("N, heads", ((4, 4), (4, 2), (6, 1)))
def test_batches_and_grouped_heads(N, heads):
    for T, S in ((1, 40), (20, 7), (65, 131)):
        for causal in (False, True):
            check(*inputs(3, N, T, S, 33, 17, heads), None, causal)


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_are_broadcast(shape):
    q, k, v = inputs(2, 3, 70, 130, 16)
    for causal in (False, True):
        check(q, k, v, torch.rand(shape) < 0.6, causal)
        check(q, k, v, torch.randn(shape).bfloat16() * 4, causal)
        check(q, k, v, torch.randn(shape).bfloat16().masked_fill(torch.rand(shape) < 0.3, -math.inf), causal)


@pytest.mark.parametrize("kind", ("bool", "float"))
def test_rows_that_see_no_key_are_zero(kind):
    mask = partly_blind(kind)
    out = check(*inputs(1, 2, 40, 200, 16), mask if kind == "bool" else mask.bfloat16())
    assert (out[:, :, [3, 39]] == 0).all()


def test_inputs_of_any_strides():
    for T in (3, 33):
        q, k, v = (torch.randn(2, T, 4, 24).bfloat16().transpose(1, 2) for _ in range(3))
        check(q, k, v, None, True)
        check(*(torch.randn(2, 4, 24, T).bfloat16().transpose(2, 3) for _ in range(3)))
        check(*(torch.randn(2, 4, 2 * T, 48).bfloat16()[:, :, 1::2, 3:20] for _ in range(3)))
        check(q, k[:, :1, :1].expand(2, 4, T, 24), v[:1, :, :1].expand(2, 4, T, 24))
    q, k, v = inputs(2, 3, 20, 50, 8)
    check(q, k, v, torch.randn(50, 20, 3, 2).bfloat16().permute(3, 2, 1, 0))
    check(q, k, v, torch.randn(2, 3, 20, 101).bfloat16()[..., 1:51])


@pytest.mark.parametrize("scale", (0.0, 1.0, 0.3, -0.5))
def test_scale(scale):
    for T in (1, 30):
        check(*inputs(1, 2, T, 50, 16), None, False, scale)


@BOTH
@pytest.mark.parametrize("p", (0.1, 0.5, 1.0))
def test_dropout(p, causal):
    for T, S in ((1, 50), (33, 51), (70, 203)):
        check(*inputs(2, 4, T, S, 16, 8, 2), torch.rand(T, S) < 0.8, causal, None, p, torch.tensor([-7]))


@pytest.mark.parametrize("where", ("query", "key", "value", "mask"))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
def test_nan_and_infinity_go_where_torch_lets_them(value, where):
    (q, k, v), mask = inputs(1, 2, 40, 121, 16), torch.zeros(40, 121).bfloat16()
    changed = {"query": q[0, 0, 0], "key": k[0, 1, 100], "value": v[0, 1, 120], "mask": mask[0, 110:]}[where]
    changed[3] = value
    for m in (None, mask, torch.arange(121).expand(40, 121) != 100):
        if m is not None or where != "mask":
            theirs = torch_attention(*(x.float() for x in (q, k, v)), m.float() if m is mask else m)
            ours = attention_cpu.forward(q, k, v, m)
            torch.testing.assert_close(ours.float(), theirs, equal_nan=True, rtol=2 * HALF, atol=2 * HALF)


def test_later_keys_do_not_reach_the_past():
    """Keys and values of another vector of queries, and the second of a pair of which the first is seen."""
    first = target.current().lanes(4)
    q, k, v = inputs(1, 1, first + 1, 99, 16)
    clean = attention_cpu.forward(q, k, v, causal=True)
    k[:, :, first:], v[:, :, first:] = math.nan, math.nan
    assert torch.equal(attention_cpu.forward(q, k, v, causal=True)[:, :, :first], clean[:, :, :first])


def test_scratch_memory_is_written_before_it_is_read():
    q, k, v = inputs(1, 2, 37, 141, 19, 23)
    for given in ((torch.randn(37, 141).bfloat16(), True), (None, False, None, 0.3, torch.tensor([3]))):
        first = attention_cpu.forward(q, k, v, *given)
        rows.scratch(1, torch.float32)[0].fill(math.nan)
        assert torch.equal(attention_cpu.forward(q, k, v, *given), first)


@BOTH
def test_the_bits_do_not_depend_on_the_threads(causal):
    q, k, v = inputs(2, 4, 500, 500, 64, heads=2)
    alone = attention_cpu.with_lse(q, k, v, None, causal)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, attention_cpu.with_lse(q, k, v, None, causal), alone))


@pytest.mark.skipif(target.current().triple.split("-")[0] != "x86_64", reason="these are x86-64 instruction sets")
@pytest.mark.slow
@pytest.mark.parametrize("features", (AVX2, AVX512), ids=("avx2", "avx512 without the instruction"))
def test_without_the_instruction(features, kernel_environment):
    if features is AVX512 and target.current().name != "AVX-512":
        pytest.skip("this CPU has no AVX-512")
    command = [sys.executable, "-c", WITHOUT, "-q", "-p", "no:cacheprovider", "-k", "not without", __file__]
    environment = {**kernel_environment, **features}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
