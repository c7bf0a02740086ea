"""Keeping less for the backward: results, what is kept, and the switch, on a CPU."""

import copy
import pickle
from functools import partial

import pytest
import torch
from agreement import assert_agree
from kept import kept_by
from ragged_problem import RaggedProblem
from scan_problem import Problem
from seqkernels.kernels.cells import CELLS

from seqkernels import functional, nn

I, H = 3, 5
KINDS = ("RNN", "LSTM", "GRU")


@pytest.mark.parametrize("through", ("function", "operator"))
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_same_and_states_alone_are_kept(cell, through):
    problem = Problem(cell, (4, 3, I, H, 2, True, True), torch.float64)
    x, h, c, weights = problem.x, problem.h, problem.c, problem.weights
    inputs = [t.requires_grad_() for t in (x, h, c, *weights) if t is not None]
    results, kept = [], []
    for recompute in (False, True):
        if through == "function":
            run = partial(functional.scan, cell, x, h, c, weights, batch_first=True, recompute=recompute)
        else:
            run = partial(torch.ops.seqkernels.scan, cell, x, h, c, weights, True, True, recompute=recompute)
        tensors, outputs = kept_by(run)
        outputs = outputs[: 1 + CELLS[cell].states]
        results.append([*outputs, *torch.autograd.grad(sum(t.sin().sum() for t in outputs), inputs)])
        given = {t.data_ptr() for t in inputs}
        kept.append([t.numel() for t in tensors if t.data_ptr() not in given])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)
    assert kept[1] == kept[0][:1] == [CELLS[cell].states * 2 * 4 * 3 * H], "the states"
    assert len(kept[0]) == 2, "and the gates"


# T, B, I, H, directions, batch_first, bias
SHAPES = [(63, 7, 5, 18, 2, False, True), (20, 40, 65, 130, 2, True, False), (200, 1, 9, 33, 1, False, True)]


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("ragged", (False, True))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gates_of_many_chunks(cell, shape, ragged, threads):
    T, B = shape[:2]
    lengths = [(7 * b * b + 3 * b + 150) % (T + 1) for b in range(B)] if ragged else None
    marks = [(t, b) for t in range(T) for b in range(B) if (5 * t + 3 * b) % 11 == 0] if ragged else None
    problem = RaggedProblem(cell, shape, torch.float64, lengths, marks)
    exact = problem.by_reference(torch.float64)
    torch.set_num_threads(threads)
    assert_agree(problem.ours(recompute=True), exact, exact)


def test_threads_do_not_change_a_bit():
    problem, results = RaggedProblem("lstm", SHAPES[1], torch.float32), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(problem.ours(recompute=True))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0].values(), other.values()))


@pytest.mark.parametrize("layers", (1, 2))
@pytest.mark.parametrize("kind", KINDS)
def test_modules(kind, layers):
    plain = getattr(nn, kind)(I, H, layers, bidirectional=True, dropout=0.5 * (layers > 1))
    module, x, results, counts = copy.deepcopy(plain), torch.randn(4, 3, I), [], []
    module.recompute = True
    for run in (plain, module):
        torch.manual_seed(1)
        kept, (y, _) = kept_by(run, x)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [*run.parameters()])])
        counts.append(len(kept))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert counts[0] - counts[1] == layers, "no gates"


@pytest.mark.parametrize("kind", KINDS)
def test_the_switch(kind):
    module = getattr(nn, kind)(I, H, recompute=True)
    for made in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert made.recompute is True
        assert repr(made) == f"{kind}({I}, {H}, recompute=True)"
        assert list(made.state_dict()) == list(getattr(torch.nn, kind)(I, H).state_dict())
    module.recompute = False
    assert repr(module) == f"{kind}({I}, {H})"
    del vars(module)["recompute"]  # as one that was pickled before there was the switch
    assert pickle.loads(pickle.dumps(module)).recompute is False


def test_with_a_learned_initial_state():
    module = nn.LSTM(I, H, learn_initial_state=True, recompute=True)
    assert repr(module) == f"LSTM({I}, {H}, learn_initial_state=True, recompute=True)"
    module(torch.randn(4, 3, I))[0].sum().backward()
    assert all(p.grad.any() for p in module.parameters())


def test_it_has_no_effect_where_no_kernel_runs():
    x, weights = torch.randn(4, 3, I, requires_grad=True), [torch.randn(H, I), torch.randn(H, H)]
    options = {"lengths": torch.tensor([4, 1, 2]), "impl": "reference"}
    results = [functional.scan("rnn_tanh", x, weights=weights, recompute=r, **options).y for r in (False, True)]
    assert torch.equal(*results)
    module = nn.GRU(I, H, recompute=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.fallback_reason(x) is not None
        module(x)[0].sum().backward()
    assert x.grad is not None
