"""Modules of several layers on a GPU, which run these as a wavefront, or in Triton's interpreter; and their second
gradients."""

from functools import partial

import pytest
import torch
from agreement import assert_agree
from device import DEVICE, there
from layers_problem import LayersProblem
from scan_problem import assert_same
from seqkernels.kernels.gpu import wavefront_plan
from torch.overrides import TorchFunctionMode

from seqkernels import _backends, nn, reference
from seqkernels.ops import layers, wavefront_gpu

I, H, B, T = 5, 18, 3, 4


@pytest.fixture
def calls(monkeypatch):
    """Triton takes CPU tensors, sizes are for a wavefront. A list that grows with every one that runs."""
    monkeypatch.setattr(_backends, "chosen", "triton")
    for name, size in (("SHORTEST", 2), ("MULTIPLE", 1)):
        monkeypatch.setattr(wavefront_plan, name, size)
    monkeypatch.setattr(wavefront_gpu, "processors", lambda device: 132)
    seen = []
    for name in ("forward", "backward"):
        run = getattr(wavefront_gpu, name)
        monkeypatch.setattr(wavefront_gpu, name, lambda *a, run=run, name=name: (seen.append(name), run(*a))[1])
    return seen


def results(module, x, hx):
    """Outputs, and the gradients of everything, by name."""
    x, *states = (t.detach().to(next(module.parameters())).requires_grad_() for t in (x, *hx))
    given = (x, tuple(states) if len(states) == 2 else states[0])
    outputs = [t for t in torch.utils._pytree.tree_leaves(module(*given))]
    wanted = {"x": x, **{f"state{i}": s for i, s in enumerate(states)}, **dict(module.named_parameters())}
    loss = sum((t * torch.linspace(-1, 1, t.numel()).view(t.shape).to(t)).sum() for t in outputs)
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    named = {f"output{i}": t.detach() for i, t in enumerate(outputs)} | dict(zip(wanted, gradients))
    return {name: tensor.cpu() for name, tensor in named.items()}


@pytest.mark.parametrize("kind, options", [("LSTM", {"batch_first": True}), ("GRU", {"bias": False}), ("RNN", {})])
def test_modules_run_their_layers_so(kind, options, calls):
    ours, theirs = (getattr(n, kind)(I, H, 2, **options) for n in (nn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, T, I) if "batch_first" in options else torch.randn(T, B, I)
    hx = [torch.randn(2, B, H) for _ in range(2 if kind == "LSTM" else 1)]
    got, close = results(ours.to(DEVICE), x, hx), results(theirs, x, hx)
    assert_agree(got, results(theirs.double(), x, hx), close)
    assert calls == ["forward", "backward"]


def test_without_a_gradient_and_unbatched(calls):
    ours, x = nn.LSTM(I, H, 3).to(DEVICE), torch.randn(T, I, device=DEVICE)
    recorded = ours(x)[0]
    with torch.no_grad():
        y = ours(x)[0]
    assert "_Wavefront" in recorded.grad_fn.next_functions[0][0].name() and y.grad_fn is None
    assert_same(y, recorded.detach())
    assert calls == ["forward"] * 2


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_where_layers_run_in_turn(calls):
    x = torch.randn(T, B, I, device=DEVICE)
    with torch.no_grad():
        for module in (nn.LSTM(I, H), nn.LSTM(I, H, 2, bidirectional=True), nn.LSTM(I, H, 2, dropout=0.5)):
            module.to(DEVICE)(x)
        deep = nn.GRU(I, H, 2).to(DEVICE)
        deep(x[:1])
        with Mode():
            deep(x)
        assert not calls
        nn.LSTM(I, H, 2, dropout=0.5).to(DEVICE).eval()(x)
    assert calls == ["forward"]


def test_memory_that_was_freed_is_refused_by_name(calls):
    module, x = nn.GRU(I, H, 2).to(DEVICE), torch.randn(T, B, I, device=DEVICE)
    module.weight_ih_l1.untyped_storage().resize_(0)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"weights\[4\] needs .* its storage was resized"):
        module(x)
    assert not calls


def twice(run, problem, dtype):
    """Results, gradients, and gradients of the gradients' squares, by name."""
    tensors = (problem.x, problem.h, problem.c, *problem.weights)
    x, h, c, *weights = leaves = [t.to(dtype, copy=True).requires_grad_() for t in there(*tensors)]
    outputs = run(problem.cell, x, h, c, weights, problem.batch_first, len(h))
    first = torch.autograd.grad(sum(t.square().sum() for t in outputs), leaves, create_graph=True)
    second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
    return {f"{i}": t.detach().cpu() for i, t in enumerate((*outputs, *first, *second))}


def test_second_gradients(calls):
    problem = LayersProblem("lstm", 2, (4, 2, 2, 4, True, True), torch.float32)
    run = partial(layers.in_turn, lambda *given, recompute: reference.scan(*given)[:3])
    ours = twice(layers.as_wavefront, problem, torch.float32)
    assert calls == ["forward", "backward"]
    assert_agree(ours, twice(run, problem, torch.float64), twice(run, problem, torch.float32))
