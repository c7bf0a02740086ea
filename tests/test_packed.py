"""The cache of packed weights notices every way in which weights change."""

import gc

import pytest
import torch

from seqkernels import nn
from seqkernels.ops import packed, packing

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def transposed(p):
    p.data = p.data.t() if p.dim() == 2 and p.shape[0] == p.shape[1] else p.data * 2


def strided_then_scaled(p):
    if p.dim() == 2:
        p.data = p.data.t().contiguous().t()
    p.data.mul_(3)


CHANGES = {
    "in place": lambda p: p.mul_(2),
    "data scaled": lambda p: p.data.mul_(2),
    "data negated": lambda p: p.data.neg_(),
    "data filled": lambda p: p.data.fill_(0.25),
    "data replaced": lambda p: setattr(p, "data", torch.randn_like(p)),
    "data transposed": transposed,
    "strided, then scaled": strided_then_scaled,
    "one row": lambda p: p.data[5].mul_(3),
    "one element": lambda p: p.data.view(-1)[7].add_(1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("T", (1, 3))
@dtypes
def test_a_change_is_seen_by_the_next_call(change, T, dtype):
    ours, theirs = nn.RNN(16, 16).to(dtype), torch.nn.RNN(16, 16).to(dtype)
    x = torch.randn(T, 2, 16, dtype=dtype)
    with torch.no_grad():
        ours(x)
        ours(x)
        for parameter in ours.parameters():
            change(parameter)
            theirs.load_state_dict(ours.state_dict())
            torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-5, atol=1e-5)


@dtypes
def test_large_weights_that_are_scaled_are_seen(dtype):
    ours = nn.LSTM(64, 128).to(dtype)
    x = torch.randn(3, 2, 64, dtype=dtype)
    with torch.no_grad():
        before = ours(x)[0]
        for parameter in ours.parameters():
            parameter.data.neg_()
            after = ours(x)[0]
            assert not torch.equal(before, after)
            before = after


def test_unchanged_weights_are_packed_once():
    lstm, x = nn.LSTM(8, 16, num_layers=2), torch.randn(3, 2, 8)
    with torch.no_grad():
        lstm(x)
        count = packing.pack_count()
        for _ in range(5):
            lstm(x)
    assert packing.pack_count() == count


@pytest.mark.parametrize("make", [lambda: nn.LSTM(8, 16, 2), lambda: nn.GRUCell(8, 16)], ids=["LSTM", "GRUCell"])
def test_parameters_can_be_swapped_by_a_conversion(make):
    module = make()
    with torch.no_grad():
        module(torch.randn(2, 8))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert module(torch.randn(2, 8).double())[0].dtype == torch.float64


def test_an_entry_leaves_with_its_weights():
    gc.collect()
    before = len(packed._cache)
    lstm = nn.LSTM(8, 16)
    with torch.no_grad():
        lstm(torch.randn(3, 2, 8))
    assert len(packed._cache) == before + 1
    del lstm
    gc.collect()
    assert len(packed._cache) == before
