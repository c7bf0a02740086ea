"""Attention's gradients on the CPU against float64: shapes, masks, strides, extremes, threads, AVX2."""

import math
import os
import subprocess
import sys

import pytest
import torch
from attention_cases import FLOATS, SIZES, assert_right, exact, inputs, partly_blind
from seqkernels.kernels.cpu import target
from test_attention import LENGTHS, MASKS
from test_target import AVX2

from seqkernels import reference as oracle
from seqkernels.ops import attention_cpu, rows

BOTH = pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))
EACH = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def by_kernels(q, k, v, dout, mask=None, causal=False, scale=None, p=0.0, seed=None):
    """out, lse and, of dout, dq, dk, dv."""
    given = causal, scale, p, seed
    out, lse = attention_cpu.with_lse(q, k, v, mask, *given)
    return out, lse, *attention_cpu.backward(dout, q, k, v, mask, out, lse, *given)


def check(q, k, v, mask=None, causal=False, scale=None, dout=None):
    """Where no query sees three keys, dq and dk are differences of near equals: held to 8 eps of their terms' size."""
    dout = torch.randn(*q.shape[:3], v.shape[3], dtype=q.dtype) if dout is None else dout
    ours = by_kernels(q, k, v, dout, mask, causal, scale)
    if k.shape[2] <= 2 or causal and q.shape[2] <= 2:
        out, lse, dq, dk, dv = ours
        wanted = [x.to(q.dtype) for x in exact(q, k, v, mask, causal, scale, dout)[2:4]]
        values = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        terms = (dout.abs() @ values.abs().mT).max() * max(q.abs().max(), k.abs().max())
        for x, right in zip((dq, dk), wanted, strict=True):
            assert (x - right).abs().max() <= 8 * torch.finfo(q.dtype).eps * terms
        assert_right((out, lse, *(x.contiguous() for x in wanted), dv), q, k, v, mask, causal, scale, dout)
    else:
        assert_right(ours, q, k, v, mask, causal, scale, dout)
    return ours


@BOTH
@EACH
def test_lengths_and_sizes(dtype, causal):
    for i, T in enumerate(LENGTHS):
        for j, S in enumerate(LENGTHS):
            for D, Dv in ((SIZES[i], SIZES[j]), (SIZES[j], SIZES[i - 1])):
                check(*inputs(1, 2, T, S, D, Dv, dtype=dtype), causal=causal)


@BOTH
@pytest.mark.parametrize("T, S", ((600, 600), (70, 1300), (1300, 70), (1000, 1300), (1300, 1000)))
def test_long(T, S, causal):
    check(*inputs(1, 1, T, S, 64), causal=causal)


@EACH
@pytest.mark.parametrize("N, heads", ((4, 4), (4, 2), (6, 1)))
def test_batches_and_grouped_heads(N, heads, dtype):
    for T, S in ((1, 40), (20, 7), (65, 130)):
        for causal in (False, True):
            check(*inputs(3, N, T, S, 33, 16, heads, dtype), causal=causal)


@EACH
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_are_broadcast(shape, dtype):
    q, k, v = inputs(2, 3, 70, 130, 16, dtype=dtype)
    for causal in (False, True):
        check(q, k, v, torch.rand(shape) < 0.6, causal)
        check(q, k, v, torch.randn(shape, dtype=dtype).masked_fill(torch.rand(shape) < 0.3, -math.inf), causal)


@EACH
def test_inputs_of_any_strides(dtype):
    for T in (3, 33):
        q, k, v, dout = (torch.randn(2, T, 4, 24, dtype=dtype).transpose(1, 2) for _ in range(4))
        check(q, k, v, causal=True, dout=dout)
        check(*(torch.randn(2, 4, 24, T, dtype=dtype).transpose(2, 3) for _ in range(3)), dout=dout)
        check(*(torch.randn(2, 4, 2 * T, 48, dtype=dtype)[:, :, 1::2, 3:20] for _ in range(3)))
        check(q, k[:, :1].expand(2, 4, T, 24), v[:1].expand(2, 4, T, 24))
        check(*(torch.randn(2, 4, T, 24, dtype=torch.cdouble).conj().imag.to(dtype) for _ in range(3)))
        for expanded in (torch.randn(1, 1, 1, 24), torch.randn(1)):
            check(q, k, v, dout=expanded.to(dtype).expand(2, 4, T, 24))
    q, k, v = inputs(2, 3, 20, 50, 8, dtype=dtype)
    mask = torch.randn(50, 20, 3, 2, dtype=dtype)
    check(q, k, v, mask.permute(3, 2, 1, 0))
    check(q, k, v, (mask > 0).permute(3, 2, 1, 0))


@pytest.mark.parametrize("kind", ("bool", "float"))
def test_rows_that_see_no_key_give_nothing(kind):
    (q, k, v), mask = inputs(1, 2, 40, 200, 16), partly_blind(kind)
    out, _, dq, _, _ = check(q, k, v, mask)
    assert (out[:, :, [3, 39]] == 0).all() and (dq[:, :, [3, 39]] == 0).all()
    nothing = by_kernels(q, k, v, torch.randn(1, 2, 40, 16), torch.zeros(40, 200, dtype=torch.bool))
    assert (nothing[1] == -math.inf).all() and all((x == 0).all() for x in (nothing[0], *nothing[2:]))


@pytest.mark.parametrize("size, dtype", ((1e-3, torch.float32), (1e-3, torch.float64), (30.0, torch.float32)), ids=str)
def test_small_and_large_inputs(size, dtype):
    """Of large inputs float64 gradients are as wrong in the reference: almost all weight is one key's."""
    for T, S, D in ((65, 130, 64), (2 if size < 1 else 40, 300, 33), (20, 20, 200)):
        for causal in (False, True):
            check(*inputs(1, 2, T, S, D, dtype=dtype, size=size), causal=causal)


@pytest.mark.parametrize("T, scale", ((1, 0.0), (1, -0.5), (30, 0.0), (30, 1.0), (30, 0.3), (30, -0.5), (30, 10.0)))
def test_scale(T, scale):
    check(*inputs(1, 2, T, 50, 16), scale=scale)


@BOTH
@pytest.mark.parametrize("p", (0.0, 0.1))
def test_empty(p, causal):
    for B, T, S, D, Dv in ((0, 5, 6, 8, 5), (2, 0, 6, 8, 5), (2, 5, 0, 8, 5), (2, 5, 6, 0, 5), (2, 5, 6, 8, 0)):
        q, k, v = inputs(B, 4, T, S, D, Dv, 2)
        out, lse, dq, dk, dv = by_kernels(q, k, v, torch.ones(B, 4, T, Dv), None, causal, None, p, torch.tensor([1]))
        assert (out.shape, lse.shape, dq.shape) == ((B, 4, T, Dv), (B, 4, T), q.shape)
        assert (dk.shape, dv.shape) == (k.shape, v.shape)
        assert (dq == 0).all() and (dk == 0).all()
        if S == 0:
            assert (out == 0).all() and (lse == -math.inf).all()
        if D == 0 and p == 0:
            assert torch.allclose(dv.sum(2), torch.full((B, 2, Dv), 2.0 * T))
        elif D:
            assert (dv == 0).all()


@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("where", ("q", "k", "v", "dout"))
@pytest.mark.parametrize("T", (3, 70))
def test_nan_flows_where_it_does_in_the_formulas(T, where, value):
    """torch's kernels lose some: the weights of a row with a score of infinity, all NaN, are 0 in its backward."""
    tensors = dict(zip("qkv", inputs(1, 2, T, 120, 16), strict=True), dout=torch.randn(1, 2, T, 16))
    tensors[where][0, 1, 2, 3] = value
    for mask in (None, torch.zeros(T, 120).masked_fill(torch.rand(T, 120) < 0.3, -math.inf)):
        q, k, v, dout = tensors.values()
        out, _, *gradients = by_kernels(q, k, v, dout, mask)
        wanted = oracle.scaled_dot_product_attention(q, k, v, mask)
        formulas = oracle.attention_gradients(dout, q, k, v, mask, False, None)[:3]
        for name, a, b in zip(("out", "dq", "dk", "dv"), (out, *gradients), (wanted, *formulas), strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), name
            assert torch.equal(a.isnan(), b.isnan()) or value == math.inf, name


def test_queries_of_the_past_know_nothing_of_later_blocks():
    q, k, v = inputs(1, 1, 400, 400, 16)
    dout = torch.randn(1, 1, 400, 16)
    clean = by_kernels(q, k, v, dout, causal=True)
    k[0, 0, 300], v[0, 0, 300] = math.nan, math.nan
    ours = by_kernels(q, k, v, dout, causal=True)
    for a, b in zip(ours[:3], clean[:3], strict=True):
        assert torch.equal(a[:, :, :192], b[:, :, :192]) and a[:, :, 300:].isnan().all()


def test_scratch_memory_is_written_before_it_is_read():
    (q, k, v), dout = inputs(2, 2, 37, 141, 19, 23), torch.randn(2, 2, 37, 23)
    for given in ((torch.randn(37, 141), True), (None, False, None, 0.3, torch.tensor([3]))):
        first = by_kernels(q, k, v, dout, *given)
        rows.scratch(1, torch.float32)[0].fill(math.nan)
        for a, b in zip(by_kernels(q, k, v, dout, *given), first, strict=True):
            assert torch.equal(a, b)


@BOTH
@pytest.mark.parametrize("p", (0.0, 0.3))
@pytest.mark.parametrize("B, N, heads, T", ((2, 4, 2, 500), (1, 1, 1, 1700)))
def test_the_bits_do_not_depend_on_the_threads(B, N, heads, T, p, causal):
    """Of one head the keys are split into chunks: as many for any number of threads."""
    (q, k, v), dout = inputs(B, N, T, T, 64, heads=heads), torch.randn(B, N, T, 64)
    given = None, causal, None, p, torch.tensor([11])
    alone = by_kernels(q, k, v, dout, *given)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for a, b in zip(by_kernels(q, k, v, dout, *given), alone, strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(target.current().name == "AVX2", reason="all tests run on AVX2 here")
@pytest.mark.slow
def test_avx2_gives_the_same_answers():
    chosen = "grouped_heads or any_strides or no_key or long or scratch or dropout or drops"
    files = [__file__, os.path.join(os.path.dirname(__file__), "test_attention_training.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", f"({chosen}) and not avx2"]
    done = subprocess.run(command, env={**os.environ, **AVX2}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AVX2, 8 float32 lanes" in done.stdout
