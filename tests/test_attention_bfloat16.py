"""Attention of bfloat16 on the CPU against float64, with the CPU's own instruction and without.

Every element has a bound of its own, which follows from what is rounded to bfloat16: the weights, the gradients of the
scores, and the results, of which the output goes into the gradients.
"""

import math

import pytest
import torch
import without_dots
from attention_cases import SIZES, added, partly_blind
from seqkernels.kernels.cpu import target
from test_attention import LENGTHS, MASKS
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from seqkernels import dropout
from seqkernels import reference as oracle
from seqkernels.ops import attention_cpu, rows

HALF = 2.0**-8  # the largest relative error of rounding to bfloat16
FLOAT32 = 2.0**-18  # that of the exponentials and sums, beside the sum of absolute terms
DROPPED = pytest.param(0.3, marks=pytest.mark.slow)  # float32's kernels drop the same weights in the default suite
BOTH = pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))
NAMES = "out", "dq", "dk", "dv"


def inputs(B, N, T, S, D, Dv=None, heads=None):
    shapes = (B, N, T, D), (B, heads or N, S, D), (B, heads or N, S, D if Dv is None else Dv)
    return [torch.randn(shape).bfloat16() for shape in shapes]


def by_kernels(q, k, v, dout, mask=None, causal=False, scale=None, p=0.0, seed=None):
    """out, lse and, of dout, dq, dk, dv."""
    given = mask, causal, scale, p, seed
    out, lse = attention_cpu.with_lse(q, k, v, *given)
    return out, lse, *attention_cpu.backward(dout, q, k, v, mask, out, lse, *given[1:])


def exact(q, k, v, dout, mask=None, causal=False, scale=None, p=0.0, seed=None):
    """lse, and out, dq, dk and dv each with the largest errors that its elements may have; in float64."""
    heads, scale = k.shape[:2], q.shape[3] ** -0.5 if scale is None else scale
    q, dout, k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (q, dout, k, v))
    scores = q @ k.mT * scale + added(mask, causal, q.shape[2], k.shape[2])
    weights = scores.softmax(3).masked_fill((scores == -math.inf).all(3, keepdim=True), 0.0)
    kept = dropout.multiplier(p, seed, weights.shape, weights.dtype) if p else torch.ones_like(weights)
    dropped, error = weights * kept, HALF + FLOAT32
    out, out_size = dropped @ v, dropped @ v.abs()
    out_error = error * (out.abs() + out_size)
    terms = weights * ((dout.abs() @ v.abs().mT) * kept + (out_size * dout.abs()).sum(3, keepdim=True))
    ds = scale * weights * ((dout @ v.mT) * kept - (out * dout).sum(3, keepdim=True))
    ds_error = HALF * ds.abs() + abs(scale) * (
        weights * (out_error * dout.abs()).sum(3, keepdim=True) + FLOAT32 * terms
    )
    values = ds @ k, ds.mT @ q, dropped.mT @ dout
    errors = ds_error @ k.abs(), ds_error.mT @ q.abs(), error * (dropped.mT @ dout.abs())
    found = [(value, error * value.abs() + extra) for value, extra in zip(values, errors, strict=True)]
    grouped = [found[0], *([x.unflatten(1, (heads[1], -1)).sum(2) for x in pair] for pair in found[1:])]
    return scores.logsumexp(3), dict(zip(NAMES, ((out, out_error), *grouped), strict=True))


def check(q, k, v, mask=None, causal=False, scale=None, p=0.0, seed=None, dout=None):
    given = mask, causal, scale, p, seed
    dout = torch.randn(*q.shape[:3], v.shape[3]).bfloat16() if dout is None else dout
    out, lse, *gradients = by_kernels(q, k, v, dout, *given)
    sums, wanted = exact(q, k, v, dout, *given)
    torch.testing.assert_close(lse.double(), sums, rtol=4 * torch.finfo(torch.float32).eps, atol=2e-6)
    for ours, (name, (right, allowed)) in zip((out, *gradients), wanted.items(), strict=True):
        assert ours.dtype == torch.bfloat16 and ours.is_contiguous() and ours.shape == right.shape, name
        excess = (ours - right).abs() - allowed
        assert (excess <= 0).all(), f"{name} of q {tuple(q.shape)}, v {tuple(v.shape)}: {excess.max():.2e} too much"
    if not attention_cpu.is_decode(q.shape[2], k.shape[2], mask, causal, p):
        assert torch.equal(attention_cpu.forward(q, k, v, *given), out)
    return out, *gradients


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
    out, dq, _, _ = check(*inputs(1, 2, 40, 200, 16), mask if kind == "bool" else mask.bfloat16())
    assert (out[:, :, [3, 39]] == 0).all() and (dq[:, :, [3, 39]] == 0).all()


def test_inputs_of_any_strides():
    for T in (3, 33):
        q, k, v, dout = (torch.randn(2, T, 4, 24).bfloat16().transpose(1, 2) for _ in range(4))
        check(q, k, v, None, True, dout=dout)
        check(q, k, v, dout=torch.randn(1, 1, 1, 24).bfloat16().expand(2, 4, T, 24))
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


@pytest.mark.slow
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


@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("where", ("q", "k", "v", "dout"))
@pytest.mark.parametrize("T", (3, 71))
def test_gradients_are_nan_where_they_are_in_the_formulas(T, where, value):
    tensors = dict(zip("qkv", inputs(1, 2, T, 121, 16), strict=True), dout=torch.randn(1, 2, T, 16).bfloat16())
    tensors[where][0, 1, 2, 3] = value
    for mask in (None, torch.zeros(T, 121).masked_fill(torch.rand(T, 121) < 0.3, -math.inf)):
        q, k, v, dout = tensors.values()
        out, _, *gradients = by_kernels(q, k, v, dout, mask if mask is None else mask.bfloat16())
        q, k, v, dout = (x.float() for x in tensors.values())
        wanted = oracle.scaled_dot_product_attention(q, k, v, mask)
        formulas = oracle.attention_gradients(dout, q, k, v, mask, False, None)[:3]
        for name, a, b in zip(NAMES, (out, *gradients), (wanted, *formulas), strict=True):
            assert torch.equal(a.isfinite(), b.isfinite()), name
            assert torch.equal(a.isnan(), b.isnan()) or value == math.inf, name


@pytest.mark.parametrize("T", (9, 71))
def test_nothing_past_the_last_query_has_a_weight(T):
    """A key that no query gives any; a query of zeros would give it NaN."""
    (q, k, v), dout = inputs(1, 2, T, 121, 16), torch.randn(1, 2, T, 16).bfloat16()
    k[0, 1, 2, 3] = -math.inf
    out, _, _, dk, dv = by_kernels(q.abs(), k, v, dout)
    assert out.isfinite().all() and dk.isfinite().all() and dv.isfinite().all()
    assert not dk[0, 1, 2].any() and not dv[0, 1, 2].any()


def test_later_keys_do_not_reach_the_past():
    """Keys and values of another vector of queries, and the second of a pair of which the first is seen."""
    first = target.current().lanes(4)
    (q, k, v), dout = inputs(1, 1, first + 1, 99, 16), torch.randn(1, 1, first + 1, 16).bfloat16()
    clean = by_kernels(q, k, v, dout, causal=True)
    k[:, :, first:], v[:, :, first:] = math.nan, math.nan
    for ours, before in zip(by_kernels(q, k, v, dout, causal=True)[:3], clean, strict=False):
        assert torch.equal(ours[:, :, :first], before[:, :, :first]) and ours[:, :, first:].isnan().all()


@BOTH
@pytest.mark.parametrize("p", (0.0, DROPPED))
def test_empty(p, causal):
    for B, T, S, D, Dv in ((0, 9, 6, 8, 5), (2, 0, 6, 8, 5), (2, 9, 0, 8, 5), (2, 9, 6, 0, 5), (2, 9, 6, 8, 0)):
        given = *inputs(B, 4, T, S, D, Dv, 2), torch.ones(B, 4, T, Dv).bfloat16()
        out, _, *gradients = by_kernels(*given, None, causal, None, p, torch.tensor([1]))
        for x, of in zip((out, *gradients), (given[3], *given[:3]), strict=True):
            assert x.shape == of.shape and x.dtype == torch.bfloat16 and x.isfinite().all()
        if S == 0:
            assert not out.any()
        if D == 0 and p == 0:
            sums = gradients[2].double().sum(2)
            torch.testing.assert_close(sums, torch.full_like(sums, 2 * T), rtol=2 * HALF, atol=0)


@pytest.mark.parametrize("p", (0.0, DROPPED))
def test_scratch_memory_is_written_before_it_is_read(p):
    (q, k, v), dout = inputs(1, 2, 37, 141, 19, 23), torch.randn(1, 2, 37, 23).bfloat16()
    given = torch.randn(37, 141).bfloat16(), not p, None, p, torch.tensor([3])
    first = by_kernels(q, k, v, dout, *given)
    rows.scratch(1, torch.float32)[0].fill(math.nan)
    assert all(map(torch.equal, by_kernels(q, k, v, dout, *given), first))


@BOTH
@pytest.mark.parametrize("p", (0.0, DROPPED))
@pytest.mark.parametrize("B, N, heads, T", ((2, 4, 2, 500), (1, 1, 1, 1700)))
def test_the_bits_do_not_depend_on_the_threads(B, N, heads, T, p, causal):
    (q, k, v), dout = inputs(B, N, T, T, 64, heads=heads), torch.randn(B, N, T, 64).bfloat16()
    given = q, k, v, dout, None, causal, None, p, torch.tensor([11])
    alone = by_kernels(*given)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, by_kernels(*given), alone))


@without_dots.features_and_tests(None, "not without", "not without")
def test_without_the_instruction(features, chosen, kernel_environment):
    without_dots.run(__file__, features, chosen, kernel_environment)
