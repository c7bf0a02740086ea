"""The Triton scan that keeps the states alone, whose backward makes the gates anew: on a GPU, or interpreted."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from agreement import assert_agree
from bfloat16_interpreter import repair
from device import DEVICE, INTERPRETED, there
from kept import kept_by
from ragged_problem import RaggedProblem, twice
from scan_problem import Problem
from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu import regimes
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.library import opcheck

from seqkernels import _backends, functional, nn
from seqkernels.ops import scan_gpu, scan_recompute_gpu
from seqkernels.ops.ragged import past

if INTERPRETED:
    repair()

DRIVER = SimpleNamespace(forward=partial(scan_gpu.forward, recompute=True), backward=scan_gpu.backward)
# T, B, I, H, directions, batch_first, bias
SHAPE = 3, 5, 3, 17, 2, False, True
LENGTHS = [3, 0, 2, 1, 3]
# (step, row): first and last; past the end of an empty row; last valid one and past it; only one; two in succession
RESET = [(0, 0), (2, 0), (1, 1), (1, 2), (2, 2), (0, 3), (1, 4), (2, 4)]
SAVING = [name for name, cell in CELLS.items() if cell.saved]


@pytest.fixture
def triton(monkeypatch):
    """Triton takes CPU tensors."""
    monkeypatch.setattr(_backends, "chosen", "triton")


def assert_right(problem):
    exact, close = (problem.by_reference(dtype) for dtype in (torch.float64, problem.x.dtype))
    assert_agree(problem.ours(driver=DRIVER), exact, close)


@pytest.mark.parametrize("batch_first", (False, True), ids=("time first", "batch first"))
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_both_ways(cell, batch_first):
    assert_right(Problem(cell, (4, 3, 5, 18, 2, batch_first, not batch_first), torch.float32))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=("float16", "bfloat16"))
@pytest.mark.parametrize("cell", SAVING)
def test_half_precision(cell, dtype):
    assert_right(Problem(cell, (4, 3, 5, 18, 2, True, True), dtype))


RAGGED = {
    "lengths": ((3, 5, 3, 17, 1, False, True), LENGTHS, None),
    "reset states": (SHAPE, LENGTHS, RESET),
    "from zero, batch first": ((3, 5, 3, 17, 2, True, False), None, RESET, False),
    "one step": ((1, 4, 3, 17, 2, False, False), [1, 0, 0, 1], [(0, 0), (0, 1)]),
}


@pytest.mark.parametrize("ragged", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("cell", SAVING)
def test_rows_that_end_and_start_again(cell, ragged):
    shape, *rows = ragged
    assert_right(RaggedProblem(cell, shape, torch.float32, *rows))


@pytest.mark.parametrize("cell", SAVING)
def test_what_lies_past_an_end_reaches_nothing(cell):
    problem = RaggedProblem(cell, SHAPE, torch.float32, LENGTHS, RESET)
    ended = past(problem.ragged.lengths, SHAPE[0])
    problem.x[ended] = 0
    references = problem.by_reference(torch.float64), problem.by_reference(torch.float32)
    problem.x[ended] = problem.dy[ended] = float("nan")
    assert_agree(problem.ours(driver=DRIVER), *references)


@pytest.mark.parametrize("regime", ("grid", "stepwise"))
def test_gates_are_those_that_the_forward_would_keep(regime, monkeypatch):
    """In every regime, and whether all steps are one product or not."""
    problem = RaggedProblem("gru", (4, 3, 4, 18, 2, True, True), torch.float32, None, [(0, 0), (2, 1), (3, 2)])
    plan = regimes.Plan(regime, 32 if regime == "grid" else 16, 16, 32, 4)
    given = there("gru", problem.x, problem.h, None, problem.weights, True)
    ragged = {"plan": plan, "ragged": type(problem.ragged)(*there(*problem.ragged))}
    *outputs, states, gates = scan_gpu.forward(*given, True, **ragged)
    *again, same_states, none = scan_gpu.forward(*given, True, recompute=True, **ragged)
    assert not none.numel()
    torch.testing.assert_close((*again[:2], same_states), (*outputs[:2], states), rtol=0, atol=0)
    cell, x, h0, c0, weights, batch_first = given
    time_first = x.transpose(0, 1), ragged["ragged"].time_first(batch_first)
    arguments = cell, time_first[0], h0, c0, (weights[:4], weights[4:]), states, time_first[1]
    for rows in (scan_recompute_gpu.PRODUCT_ROWS, 6, 1):
        monkeypatch.setattr(scan_recompute_gpu, "PRODUCT_ROWS", rows)
        torch.testing.assert_close(scan_recompute_gpu.gates_from_states(*arguments), gates, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", SAVING)
def test_second_gradients(triton, cell):
    problem = RaggedProblem(cell, (3, 5, 3, 4, 2, True, True), torch.float32, LENGTHS, RESET)
    ours = twice(problem, torch.float32, "kernel", recompute=True)
    assert_agree(ours, twice(problem, torch.float64, "reference"), twice(problem, torch.float32, "reference"))


@pytest.mark.parametrize("reset", (None, RESET), ids=("plain", "operator"))
@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_not_kept(triton, cell, reset):
    problem = RaggedProblem(cell, SHAPE, torch.float32, None, reset, False)
    x, h, c, *weights = there(problem.x, problem.h, problem.c, *problem.weights)
    inputs = [t.requires_grad_() for t in (x, h, c, *weights) if t is not None]
    T, B, _, H, D, *_ = SHAPE
    marks = None if reset is None else there(problem.ragged.reset)[0]
    expected = sum(t.nbytes for t in (*inputs, marks) if t is not None) + CELLS[cell].states * D * T * B * H * 4
    scan = partial(functional.scan, cell, x, h, c, weights, reset=marks, impl="kernel")
    (least, outputs), (most, _) = kept_by(partial(scan, recompute=True)), kept_by(scan)
    assert sum(t.nbytes for t in least) == expected
    assert sum(t.nbytes for t in most) == expected + CELLS[cell].saved * D * T * B * H * 4
    assert all(g.isfinite().all() for g in torch.autograd.grad(outputs.y.sum(), inputs))


def test_opcheck(triton):
    problem = Problem("gru", (1, 1, 2, 3, 1, True, False), torch.float32)
    x, h, *weights = there(problem.x, problem.h, *problem.weights)
    given = "gru", x.requires_grad_(), h.requires_grad_(), None, [w.requires_grad_() for w in weights], True
    opcheck(torch.ops.seqkernels.scan.default, (*given, True), {"recompute": True})
    y, h_n, _, states, gates = (t.detach() for t in torch.ops.seqkernels.scan(*given, True, recompute=True))
    upstream = torch.randn_like(y).requires_grad_(), torch.randn_like(h_n).requires_grad_(), None
    given = ("gru", *upstream, *given[1:5], states, gates, True, True, True)
    opcheck(torch.ops.seqkernels.scan_backward.default, given)


def test_states_that_were_not_kept_are_made_anew(triton):
    problem = RaggedProblem("lstm", SHAPE, torch.float32, LENGTHS, RESET)
    given = there(problem.x, problem.h, problem.c, problem.weights)
    leaves = [t.requires_grad_() for t in (*given[:3], *given[3])]
    results = []
    for save in (True, False):
        y, *_ = torch.ops.seqkernels.scan("lstm", *given, False, save, *there(*problem.ragged))
        results.append(torch.autograd.grad(y.square().sum(), leaves))
    torch.testing.assert_close(*results)


def test_what_was_kept_must_fit(triton):
    problem = Problem("lstm", (2, 1, 2, 3, 1, True, False), torch.float32)
    given = there(problem.x, problem.h, problem.c, problem.weights)
    y, _, _, states, gates = torch.ops.seqkernels.scan("lstm", *given, True, True)
    for bad in ((states[:1], gates[:0]), (states, gates[1:]), (states.new_empty(0), gates)):
        with pytest.raises(RuntimeError, match="states|gates"):
            torch.ops.seqkernels.scan_backward("lstm", y, None, None, *given, *bad, True, True, True)


I, H = 4, 5


@pytest.mark.parametrize("kind", ("LSTM", "GRU"))
def test_modules(triton, kind):
    """Two layers, compiled as well: results and gradients, and what the compiled forward keeps."""
    plain = getattr(nn, kind)(I, H, 2, device=DEVICE)
    module = copy.deepcopy(plain)
    module.recompute = True
    T, B = 3, 2
    x, graphs = torch.randn(T, B, I, device=DEVICE), []

    def compiler(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    results = []
    for run in (plain, module, torch.compile(module, fullgraph=True, backend=backend)):
        y, _ = run(x)
        leaves = (plain if run is plain else module).parameters()
        results.append([y, *torch.autograd.grad(y.square().sum(), [*leaves])])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)
    outputs = next(node for node in graphs[0].graph.nodes if node.op == "output").args[0]
    shapes = [node.meta["val"].shape for node in outputs]
    cell, units = CELLS[kind.lower()], (1, T, B, H)
    assert graphs[0].code.count("recompute = True") == 2
    assert shapes.count((cell.states, *units)) == 2
    assert cell.saved * math.prod(units) not in map(math.prod, shapes)


def test_without_a_gradient_nothing_is_kept(triton):
    module = nn.LSTM(I, H, recompute=True, device=DEVICE)
    with torch.no_grad():
        kept, (y, _) = kept_by(module, torch.randn(3, 2, I, device=DEVICE))
    assert not kept and y.grad_fn is None
