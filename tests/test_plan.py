"""Whole sequences without a gradient: a module keeps how it made the last call, for calls like it and no others."""

import pytest
import torch
from test_step import I, agree, leaves, pair

import seqkernels

KINDS = ("RNN", "LSTM", "GRU")
OPTIONS = (
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 3},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "dtype": torch.float64},
)
kinds = pytest.mark.parametrize("kind", KINDS)


def given(module, kind, T, B):
    """x and hx, both non-zero; B = 0 is without a batch."""
    dtype = next(module.parameters()).dtype
    rows, H = module.num_layers * (1 + module.bidirectional), module.hidden_size
    sequence = (T,) if not B else (B, T) if module.batch_first else (T, B)
    h, c = torch.randn(2, rows, *([B] if B else []), H, dtype=dtype)
    return torch.randn(*sequence, I, dtype=dtype), (h.clone(), c.clone()) if kind == "LSTM" else h.clone()


@kinds
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_form_of_a_call(kind, options):
    ours, theirs = pair(kind, **options)
    with torch.no_grad():
        for T, B in ((6, 3), (6, 0), (1, 20), (200, 1), (6, 3)):
            x, hx = given(ours, kind, T, B)
            agree(ours, theirs, x, hx)
            agree(ours, theirs, x)
            agree(ours, theirs, torch.randn(*x.shape[:-1], 2 * I, dtype=x.dtype)[..., 1 : I + 1], hx)
            if B:
                agree(ours, theirs, x.transpose(0, 1).contiguous().transpose(0, 1), hx)


@kinds
def test_weights_of_any_layer_that_change_behind_the_plan(kind):
    ours, theirs = pair(kind, num_layers=2, bidirectional=True)
    x, hx = given(ours, kind, 4, 2)
    with torch.no_grad():
        agree(ours, theirs, x, hx)
        for mine, other in zip(ours.parameters(), theirs.parameters()):
            mine.data.mul_(1.5)
            other.mul_(1.5)
            agree(ours, theirs, x, hx)


@kinds
def test_results_are_the_callers_own(kind):
    ours = pair(kind, num_layers=2)[0]
    x, hx = given(ours, kind, 5, 2)
    with torch.no_grad():
        ours(x, hx)
        first = leaves(ours(x, hx))
        kept = [t.clone() for t in first]
        for t in leaves(ours(2 * x, hx)):
            t.zero_()
    assert all(map(torch.equal, first, kept))


def test_dropout_between_layers_is_not_forgotten():
    module, x = pair("GRU", num_layers=2, dropout=0.5)[0], torch.randn(4, 2, I)
    with torch.no_grad():
        module.eval()
        plain = [module(x)[0] for _ in range(2)]
        module.train()
        assert not torch.equal(module(x)[0], plain[0])
        module.training = False
        assert all(torch.equal(module(x)[0], y) for y in plain)


@pytest.mark.parametrize("threads", (2, 3))
def test_threads_may_change_between_calls(threads):
    module, x = pair("LSTM", num_layers=2)[0], torch.randn(130, 70, I)
    with torch.no_grad():
        torch.set_num_threads(1)
        one = [module(x)[0] for _ in range(2)][-1]
        torch.set_num_threads(threads)
        assert torch.equal(module(x)[0], one)


@pytest.mark.parametrize("form", [None, pytest.param("int8", marks=pytest.mark.slow)])
@kinds
def test_a_step_of_many_rows_is_the_same_alone_and_shared_out(kind, form):
    """One thread takes the kernel for a single step while the rows are few enough, two share out a scan."""
    module = getattr(seqkernels.nn, kind)(I, 600)
    module.weight_format = form
    with torch.no_grad():
        for B in (16, 31, 36, 37):
            x, hx = given(module, kind, 1, B)
            results = []
            for threads in (1, 2, 1):
                torch.set_num_threads(threads)
                results.append(leaves(module(x, hx)))
            assert all(all(map(torch.equal, results[0], other)) for other in results[1:]), B
            module.weight_hh_l0.data.mul_(0.9)
            torch.set_num_threads(1)
            assert not torch.equal(leaves(module(x, hx))[0], results[0][0])


def test_an_attribute_that_is_set_makes_another_call():
    module, theirs = pair("LSTM")
    x = torch.randn(3, 3, I)
    with torch.no_grad():
        agree(module, theirs, x)
        module.batch_first = theirs.batch_first = True
        agree(module, theirs, x)
