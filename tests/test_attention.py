"""Attention forward on the CPU against a float64 reference: shapes, masks, strides, extremes, threads, AVX2."""

import math
import os
import subprocess
import sys

import pytest
import torch
from attention_cases import FLOATS, SIZES, check, inputs, partly_blind
from seqkernels.kernels.cpu import target
from test_target import AVX2
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from seqkernels.ops import rows
from seqkernels.ops.attention_cpu import forward

LENGTHS = (1, 2, 5, 63, 64, 65, 130)


@pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_lengths_and_sizes(dtype, causal):
    for i, T in enumerate(LENGTHS):
        for j, S in enumerate(LENGTHS):
            for D, Dv in ((SIZES[i], SIZES[j]), (SIZES[j], SIZES[i - 1])):
                check(forward, *inputs(1, 2, T, S, D, Dv, dtype=dtype), causal=causal)


@pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))
@pytest.mark.parametrize("T, S", ((300, 300), (70, 1000), (1000, 70)))
def test_long(T, S, causal):
    check(forward, *inputs(1, 2, T, S, 64), causal=causal)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("N, heads", ((4, 4), (4, 2), (6, 1)))
def test_batches_and_grouped_heads(N, heads, dtype):
    for T, S in ((1, 40), (20, 7), (65, 130)):
        check(forward, *inputs(3, N, T, S, 33, 16, heads, dtype))


MASKS = {
    "rows and keys": (70, 130),
    "keys": (1, 130),
    "rows": (70, 1),
    "batch": (2, 1, 1, 130),
    "heads": (3, 1, 130),
    "heads and rows": (1, 3, 70, 1),
    "all": (2, 3, 70, 130),
    "nothing": (1, 1),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_are_broadcast(shape, dtype):
    q, k, v = inputs(2, 3, 70, 130, 16, dtype=dtype)
    for causal in (False, True):
        check(forward, q, k, v, torch.rand(shape) < 0.6, causal)
        check(forward, q, k, v, torch.randn(shape, dtype=dtype) * 4, causal)
        check(forward, q, k, v, torch.randn(shape, dtype=dtype).masked_fill(torch.rand(shape) < 0.3, -math.inf), causal)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_masks_of_any_strides(dtype):
    q, k, v = inputs(2, 3, 20, 50, 8, dtype=dtype)
    mask = torch.randn(50, 20, 3, 2, dtype=dtype)
    check(forward, q, k, v, mask.permute(3, 2, 1, 0))
    check(forward, q, k, v, (mask > 0).permute(3, 2, 1, 0))
    check(forward, q, k, v, torch.randn(2, 3, 20, 100, dtype=dtype)[..., ::2])
    check(forward, q, k, v, torch.randn(1, 20, 50, dtype=dtype).expand(3, 20, 50))


@pytest.mark.parametrize("kind", ("bool", "float"))
def test_rows_that_see_no_key_are_zero(kind):
    (q, k, v), mask = inputs(1, 2, 40, 200, 16), partly_blind(kind)
    check(forward, q, k, v, mask)
    ours = forward(q, k, v, mask)
    assert (ours[:, :, [3, 39]] == 0).all()
    torch.testing.assert_close(ours, torch_attention(q, k, v, mask))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_non_contiguous_inputs(dtype):
    for T in (3, 33):
        q, k, v = (torch.randn(2, T, 4, 24, dtype=dtype).transpose(1, 2) for _ in range(3))
        check(forward, q, k, v, causal=True)
        check(forward, q, k, v)
        check(forward, *(torch.randn(2, 4, 24, T, dtype=dtype).transpose(2, 3) for _ in range(3)))
        packed = torch.randn(2, T, 3, 4, 24, dtype=dtype)
        check(forward, *(packed[:, :, i].transpose(1, 2) for i in range(3)))
        check(forward, *(torch.randn(2, 4, 2 * T, 48, dtype=dtype)[:, :, 1::2, 3:20] for _ in range(3)))
        check(forward, q, k[:, :1, :1].expand(2, 4, T, 24), v[:1, :, :1].expand(2, 4, T, 24))
        check(forward, *(torch.randn(2, 4, T, 24, dtype=torch.cdouble).conj().imag.to(dtype) for _ in range(3)))


@pytest.mark.parametrize("size", (1e-3, 30.0))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_and_large_inputs(dtype, size):
    for T, S, D in ((65, 130, 64), (2, 300, 33), (20, 20, 200)):
        for causal in (False, True):
            check(forward, *inputs(1, 2, T, S, D, dtype=dtype, size=size), causal=causal)


@pytest.mark.parametrize("scale", (0.0, 1.0, 0.3, -0.5, 10.0))
def test_scale(scale):
    for T in (1, 30):
        check(forward, *inputs(1, 2, T, 50, 16), scale=scale)


@pytest.mark.parametrize("T", (1, 5))
def test_empty(T):
    q, k, v = inputs(2, 4, T, 6, 8, 5, 2)
    no_keys = forward(q, k[:, :, :0], v[:, :, :0])
    assert no_keys.shape == (2, 4, T, 5) and (no_keys == 0).all()
    assert forward(q[:, :, :0], k, v).shape == (2, 4, 0, 5)
    assert forward(q[:0], k[:0], v[:0]).shape == (0, 4, T, 5)
    assert forward(q, k, v[..., :0]).shape == (2, 4, T, 0)
    means = v.mean(2, keepdim=True).repeat_interleave(2, 1).expand(2, 4, T, 5)
    torch.testing.assert_close(forward(q[..., :0], k[..., :0], v), means)


@pytest.mark.parametrize("T", (1, 40))
@pytest.mark.parametrize("where", ("query", "key", "value", "mask"))
@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
def test_nan_and_infinity_go_where_torch_lets_them(value, where, T):
    """In torch a hidden key is a score of -inf, so that its NaN, and a NaN in its value, are seen."""
    q, k, v = inputs(1, 2, T, 120, 16)
    mask = torch.zeros(T, 120)
    changed = {"query": q[0, 0, 0], "key": k[0, 1, 100], "value": v[0, 1, 7], "mask": mask[0, 110:]}[where]
    changed[3] = value
    for m in (None, mask, torch.arange(120) != 100, torch.arange(120) != 7) if where != "mask" else (mask,):
        m = m if m is None or m.dim() == 2 else m[None].expand(T, 120)
        theirs, ours = torch_attention(q, k, v, m), forward(q, k, v, m)
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_key_of_the_future_does_not_reach_the_past(value):
    q, k, v = inputs(1, 1, 150, 150, 16)
    clean = forward(q, k, v, causal=True)
    k[0, 0, 70] = value
    ours = forward(q, k, v, causal=True)
    assert torch.equal(ours[:, :, :70], clean[:, :, :70])
    assert not ours[:, :, 70:].isfinite().all(3).all() or value == math.inf
    if math.isnan(value):
        assert ours[:, :, 70:].isnan().all()


def test_scratch_memory_is_written_before_it_is_read():
    q, k, v = inputs(1, 2, 37, 41, 19, 23)
    mask = torch.randn(37, 41)
    first = forward(q, k, v, mask, True)
    rows.scratch(1, torch.float32)[0].fill(math.nan)
    assert torch.equal(forward(q, k, v, mask, True), first)


@pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))
def test_the_bits_do_not_depend_on_the_threads(causal):
    q, k, v = inputs(2, 4, 500, 500, 64)
    alone = forward(q, k, v, None, causal)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(forward(q, k, v, None, causal), alone)


@pytest.mark.skipif(target.current().name == "AVX2", reason="all tests run on AVX2 here")
def test_avx2_gives_the_same_answers():
    chosen = "broadcast or grouped_heads or non_contiguous or no_key or long or scratch"
    folder = os.path.dirname(__file__)
    files = [os.path.join(folder, name) for name in ("test_attention.py", "test_decode.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", f"({chosen}) and not avx2"]
    done = subprocess.run(command, env={**os.environ, **AVX2}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AVX2, 8 float32 lanes" in done.stdout
