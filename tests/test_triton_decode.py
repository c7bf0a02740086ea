"""Attention of few queries in Triton, in its interpreter where there is no GPU: keys split over programs, combined."""

import itertools
import math

import pytest
import torch
from attention_cases import assert_right, by_torch, inputs
from cooperative import cooperative
from device import DEVICE, INTERPRETED
from seqkernels.kernels.gpu.attention_configs import Config
from seqkernels.kernels.gpu.decode_plan import FEWEST_KEYS, MOST_ROWS, Plan, is_decode, plan_for
from triton_attention_cases import DTYPES

from seqkernels.ops import attention_gpu, decode_gpu
from seqkernels.ops.launch_gpu import operands

SPAN, WHOLE = 32, 1024  # keys of a range: several ranges, and one


def by_triton(q, k, v, mask=None, causal=False, scale=None, span=SPAN):
    q, k, v = (x.to(DEVICE) for x in (q, k, v))
    mask = None if mask is None else mask.to(DEVICE)
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    plan = Plan(1 if rows == 1 else 16 if rows <= 16 else 32, 16, span, 4, 1)
    return [x.cpu() for x in decode_gpu.forward(q, k, v, mask, causal, scale, plan)]


def check(q, k, v, mask=None, causal=False, scale=None, span=SPAN):
    ours = by_triton(q, k, v, mask, causal, scale, span)
    assert_right(ours, q, k, v, mask, causal, scale)
    return ours


@pytest.mark.parametrize("T, group", ((1, 1), (1, 2), (1, 4), (2, 1), (3, 4), (4, 2), (5, 1), (6, 1), (7, 2), (8, 4)))
def test_queries_and_grouped_heads(T, group):
    B, heads = (2, 2) if T == 1 else (1, 2) if T < 4 else (1, 1)
    check(*inputs(B, heads * group, T, 40, 16, 8, heads), torch.rand(B, heads * group, T, 40) < 0.7, scale=0.7)


@pytest.mark.parametrize("group", (1, 2))
@pytest.mark.parametrize("S, span", ((1, 16), (15, 32), (16, 16), (17, 16), (33, 32), (64, 32), (90, 48), (90, WHOLE)))
def test_lengths(S, span, group):
    check(*inputs(1, group, 1, S, 16, heads=1), span=span)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("T", (1, 3))
def test_half_precision(T, dtype):
    q, k, v = inputs(1, 2, T, 75, 16, dtype=dtype)
    check(q, k, v)
    check(q, k, v, torch.randn(75, dtype=dtype), span=WHOLE)


@pytest.mark.parametrize("T", (1, 3))
@pytest.mark.parametrize("D, E", ((1, 1), (8, 33), (33, 8), (64, 64), (80, 80), (1, 128), (256, 256)))
def test_sizes(D, E, T):
    check(*inputs(1, 1, T, 20, D, E), span=16)


@pytest.mark.parametrize("T, heads", ((1, 2), (2, 1)))
def test_masks(T, heads):
    q, k, v = inputs(2, 2, T, 20, 8, heads=heads)
    for shape in ((T, 20), (2, 1, T, 20), (2, 2, T, 20), (2, 1, 1, 20), (T, 1), (1, 2, 1, 1), ()):
        check(q, k, v, torch.rand(shape) < 0.7, span=WHOLE)
    for shape in ((T, 20), (2, 1, 1, 20), (1, 2, T, 1)):
        check(q, k, v, torch.randn(shape).masked_fill(torch.rand(shape) < 0.3, -math.inf), span=WHOLE)


@pytest.mark.parametrize("T, group, floats", ((1, 1, True), (2, 2, False)))
def test_hidden_ranges_and_rows_that_see_no_key(T, group, floats):
    q, k, v = inputs(1, 2 * group, T, 80, 8, heads=2)
    mask = torch.rand(1, 2 * group, T, 80) < 0.7
    mask[..., SPAN : 2 * SPAN] = False  # a whole range
    mask[0, 1, 0] = False  # a row
    if floats:
        mask = torch.where(mask, 0.0, -math.inf)
    out, _ = check(q, k, v, mask)
    assert (out[0, 1, 0] == 0).all()
    for span in (SPAN, WHOLE):
        out, lse = by_triton(q, k, v, torch.tensor(False), span=span)
        assert (out == 0).all() and (lse == -math.inf).all()


@pytest.mark.parametrize("T, group, S", ((1, 1, 5), (4, 1, 2), (5, 2, 7), (8, 1, 40), (20, 1, 33)))
def test_causal(T, group, S):
    q, k, v = inputs(1, 3 * group, T, S, 8, heads=3)
    check(q, k, v, torch.rand(T, S) < 0.7 if T > 5 else None, causal=True, span=16)


@pytest.mark.parametrize("S", (0, 20))
def test_nothing_to_attend_to_or_nobody_to(S):
    sizes = (1, 1, 8, 5), (1, 3, 8, 5), (0, 3, 8, 5), (1, 0, 8, 5), (1, 3, 0, 5), (1, 1, 0, 5), (1, 3, 8, 0)
    for B, T, D, E in sizes:
        q, k, v = inputs(B, 2, T, S, D, E, heads=2 if T == 1 else 1)
        out, lse = by_triton(q, k, v, None if D else torch.ones(T, S, dtype=torch.bool))
        assert (out.shape, lse.shape) == ((B, 2, T, E), (B, 2, T))
        if S == 0:
            assert (out == 0).all() and (lse == -math.inf).all()
        elif D == 0:
            torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where", "qkv")
@pytest.mark.parametrize("T, value", ((1, math.nan), (1, math.inf), (3, math.nan)))
def test_nan_flows_where_it_does_in_torch(T, where, value):
    tensors = dict(zip("qkv", inputs(1, 1, T, 40, 8), strict=True))
    tensors[where][0, 0, 0 if where == "q" else 36, 3] = value
    for mask in (None, torch.arange(40) < 32):  # with it, key 36 is hidden, as are all keys of its range
        ours, theirs = by_triton(**tensors, mask=mask)[0], by_torch(**tensors, mask=mask)[0]
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        assert torch.equal(ours.isnan(), theirs.isnan()) or value == math.inf


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_key_of_the_future_does_not_reach_the_past():
    q, k, v = inputs(1, 2, 5, 70, 8, heads=1)
    clean = by_triton(q, k, v, causal=True)
    k[:, :, 3], k[:, :, 5:], v[:, :, 5:] = math.nan, math.nan, math.nan
    out, lse = by_triton(q, k, v, causal=True)
    assert torch.equal(out[:, :, :3], clean[0][:, :, :3]) and torch.equal(lse[:, :, :3], clean[1][:, :, :3])
    assert out[:, :, 3:].isnan().all() and lse[:, :, 3:].isnan().all()


@pytest.mark.parametrize("T", (1, 3))
def test_large_scores(T):
    tensors = inputs(1, 1, T, 80, 8, size=30.0)
    check(*tensors)
    check(*tensors, torch.full((80,), -1e30))  # the number of a range's keys is lost beside it


@pytest.mark.parametrize("T, group", ((1, 1), (3, 2)))
def test_a_cache_is_read_where_it_lies(T, group):
    q, k, v = inputs(2, 2 * group, T, 50, 8, heads=2)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    views = [turned[0], *(cache[:, :, :20] for cache in turned[1:])]
    mask = (torch.rand(30, T) < 0.7).mT[:, :20]
    assert all(map(torch.equal, by_triton(*views, mask), by_triton(*(x.contiguous() for x in (*views, mask)))))
    assert [x.data_ptr() for x in operands(*views, None)[:9:4]] == [x.data_ptr() for x in turned]
    check(q, *(cache[:, :, 1:40:2] for cache in (k, v)), span=WHOLE)
    check(q, *(cache[:1, :1, :20].expand(2, 2, 20, 8) for cache in (k, v)), span=WHOLE)


@pytest.mark.parametrize("T, group", ((1, 1), (3, 2)))
def test_the_same_bits_every_time_and_nearly_the_same_for_any_ranges(T, group):
    tensors = inputs(1, group, T, 50, 8, heads=1)
    assert all(map(torch.equal, by_triton(*tensors), by_triton(*tensors)))
    whole = by_triton(*tensors, span=WHOLE)
    for span in (16, 48):
        for a, b in zip(by_triton(*tensors, span=span), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=4 * torch.finfo(a.dtype).eps * b.abs().max().item())


@pytest.mark.parametrize("T, group", ((1, 1), (3, 2)))
def test_programs_stay_within_the_tensors_and_apart(T, group):
    if not INTERPRETED:
        pytest.skip("accesses are seen in the interpreter only")
    tensors = *inputs(1, group, T, 40, 5, 6, heads=1), torch.rand(T, 40) < 0.7
    for span in (SPAN, WHOLE):
        with cooperative():
            ours = by_triton(*tensors, span=span)
        assert_right(ours, *tensors)


def test_more_ranges_than_are_combined_at_once():
    check(*inputs(1, 1, 1, 16 * 18 + 1, 1, 256), span=16)  # 16 at a time


@pytest.mark.parametrize("T, heads, decode", ((1, 2, True), (4, 1, True), (MOST_ROWS // 2 + 1, 1, False)))
def test_attention_of_few_queries_is_decode(T, heads, decode, monkeypatch):
    """And its gradients are attention's."""
    plans = []

    def watched(*arguments):
        plans.append(plan_for(*arguments))
        return plans[-1]

    monkeypatch.setattr(decode_gpu, "plan_for", watched)
    monkeypatch.setattr(decode_gpu, "processors", lambda _: 8)
    q, k, v = inputs(1, 2, T, 2 * FEWEST_KEYS, 8, heads=heads)
    mask, dout = torch.rand(T, 2 * FEWEST_KEYS) < 0.7, torch.randn(1, 2, T, 8)
    tensors = [x.to(DEVICE) for x in (q, k, v, mask)]
    out, lse = attention_gpu.forward(*tensors)
    assert [plan.splits(2 * FEWEST_KEYS) for plan in plans] == ([2] if decode else [])
    config = Config(32, 256, 8, 1)
    gradients = attention_gpu.backward(dout.to(DEVICE), *tensors, out, lse, keys=config, queries=config)
    assert_right([x.cpu() for x in (out, lse, *gradients)], q, k, v, mask, dout=dout)


def test_ranges_are_whole_blocks_long_enough_and_none_is_empty():
    sizes = (1, 3, 16, 32), (1, 64, 80, 256), (2, 4), (1, 7, 32, 500), (0, 1, 255, 2049, 100_000), (1, 132)
    for rows, D, itemsize, heads, S, processors in itertools.product(*sizes):
        plan = plan_for(rows, D, itemsize, heads, S, processors)
        starts = range(0, plan.splits(S) * plan.span, plan.span)
        assert plan.rows >= rows and plan.span % plan.keys == 0
        assert set(starts) == {0} or starts[-1] < S <= starts[-1] + plan.span
        assert len(starts) == 1 or plan.span >= FEWEST_KEYS


@pytest.mark.parametrize("heads", (1, 8, 40, 1000))
def test_programs_fill_the_device_about_twice(heads):
    for S in (100_000, 1_000_000):
        programs = heads * plan_for(4, 128, 2, heads, S, 132).splits(S)
        assert programs == heads if heads > 264 else 1.6 * 132 <= programs <= 2 * 132 + heads
    assert plan_for(4, 128, 2, heads, 500, 132).splits(500) == 1


def test_few_queries():
    assert is_decode(1, 1) and is_decode(1, MOST_ROWS) and is_decode(MOST_ROWS, 1) and is_decode(8, 4)
    assert not is_decode(MOST_ROWS + 1, 1) and not is_decode(1, MOST_ROWS + 1)
