"""The Triton scan against torch.nn in float64, in every regime: on a GPU, or in Triton's interpreter."""

import itertools

import pytest
import torch
from agreement import assert_agree
from bfloat16_interpreter import repair
from device import INTERPRETED, back, there
from scan_problem import Problem
from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu import regimes

import seqkernels
from seqkernels.ops import scan_gpu, scan_launch_gpu

if INTERPRETED:
    repair()

# T, B, I, H, directions, batch_first, bias; H over several blocks of units where the regime has them
SHAPES = {
    "odd": (4, 3, 7, 33, 2, True, True),
    "row": (5, 1, 20, 40, 1, False, True),
    "rows": (3, 35, 9, 17, 2, False, False),
}
# One after another, as the interpreter runs programs, only one block of units may wait.
WAITING_UNITS = 64 if INTERPRETED else 16
PLANS = {
    "whole": regimes.Plan("whole", 64, 16, 64, 4),
    "grid": regimes.Plan("grid", WAITING_UNITS, 16, 64, 4),
    "streamed": regimes.Plan("streamed", WAITING_UNITS, 16, 32, 4),
    "stepwise": regimes.Plan("stepwise", 16, 16, 32, 4),
}
cells = pytest.mark.parametrize("cell", CELLS)
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
# Every cell in every regime, and the one with most of everything in every shape.
COMBINATIONS = [(cell, plan, list(SHAPES)[(i + k) % 3]) for i, cell in enumerate(CELLS) for k, plan in enumerate(PLANS)]
COMBINATIONS += [c for c in itertools.product(["lstm"], PLANS, SHAPES) if c not in COMBINATIONS]


@pytest.mark.parametrize("cell, plan, shape", COMBINATIONS)
def test_agrees_with_torch(cell, plan, shape):
    problem = Problem(cell, SHAPES[shape], torch.float32)
    ours = problem.ours(driver=scan_gpu, plan=PLANS[plan])
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.float32))


@cells
@plans
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_agrees_with_torch_in_half_precision(cell, plan, dtype):
    problem = Problem(cell, (3, 3, 7, 18, 2, True, True), dtype)
    references = problem.by_reference(torch.float64), problem.by_reference(dtype)
    runs = [problem.ours(driver=scan_gpu, plan=plan), *references]
    if cell == "rnn_relu":  # a sum that rounds to the other side of zero has another gradient, in torch as here
        runs = [{name: run[name] for name in ("y", "h_n")} for run in runs]
    assert_agree(*runs)


@pytest.mark.skipif(INTERPRETED, reason="the sizes take hours in the interpreter: for GPUs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("H, B", [(64, 16), (256, 1), (768, 16), (768, 64), (1536, 1), (1536, 16)])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_agrees_at_full_size(cell, H, B, dtype):
    """In the regime that is chosen for it, over many programs that wait for each other."""
    problem = Problem(cell, (20, B, 64, H, 1, False, True), dtype)
    ours = problem.ours(driver=scan_gpu)
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(dtype))


@cells
@pytest.mark.parametrize("scale", [1e-3, 30.0], ids=["small", "saturated"])
def test_agrees_on_small_and_saturated_inputs(cell, scale):
    problem = Problem(cell, (6, 5, 11, 24, 1, False, True), torch.float32, scale)
    ours = problem.ours(driver=scan_gpu)
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.float32))


@cells
@pytest.mark.parametrize("dy, dstates", [(True, False), (False, True)], ids=["y only", "states only"])
def test_gradients_that_enter_by_one_output(cell, dy, dstates):
    problem = Problem(cell, (4, 3, 5, 18, 2, True, True), torch.float32)
    exact = problem.by_reference(torch.float64, dy, dstates)
    ours = problem.ours(dy, dstates, driver=scan_gpu)
    assert_agree(ours, exact, problem.by_reference(torch.float32, dy, dstates))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@cells
def test_nan_and_infinity_flow_through_as_in_torch(cell, value):
    problem = Problem(cell, (4, 2, 3, 5, 1, False, True), torch.float32)
    problem.x[1, 0, 1] = value
    arguments = problem.x, problem.h, problem.c, problem.weights
    ours = scan_gpu.forward(cell, *there(*arguments), False, False)[0]
    theirs = problem.run(*arguments)[0]
    torch.testing.assert_close(*back(ours), theirs, equal_nan=True)


H200 = regimes.Device(processors=132, shared=232_448, cooperative=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("D", [1, 2])
def test_a_plan_covers_every_unit_and_row_and_fits_the_device(cell, itemsize, D):
    for H in (1, 16, 17, 64, 128, 192, 256, 384, 768, 1000, 1536, 4096, 8192):
        for B in (1, 2, 16, 33, 64, 500):
            plan = regimes.plan_for(cell, H, B, D, itemsize, H200)
            groups, row_groups = plan.blocks(H, B)
            assert groups * plan.units >= H and row_groups * plan.rows >= B and plan.chunks(H) * plan.chunk >= H
            assert plan.regime == "streamed" or plan.chunk % plan.units == 0, "a block of units is in one chunk"
            weights = CELLS[cell].gates * plan.units * plan.chunks(H) * plan.chunk * itemsize
            if plan.regime == "whole":
                assert groups == 1 and weights < H200.shared
            if plan.waits:
                assert groups * row_groups * D <= H200.processors
            if plan.regime == "grid":
                assert weights < H200.shared
            if plan.regime == "streamed":
                block = CELLS[cell].gates * (plan.units + plan.rows) * plan.chunk * itemsize
                assert 2 <= plan.stages <= 6 and plan.stages * block < H200.shared


def test_without_tf32_float32_is_never_kept_on_the_chip():
    for cell, H, B in itertools.product(CELLS, (16, 64, 100, 768), (1, 2, 64)):
        plan = regimes.plan_for(cell, H, B, 1, 4, H200, exact=True)
        assert plan.regime in ("streamed", "stepwise") and plan.rows == 16 and plan.chunk == 32
        assert plan.blocks(H, B)[0] * plan.units >= H
        assert regimes.plan_for(cell, H, B, 1, 2, H200, exact=True) == regimes.plan_for(cell, H, B, 1, 2, H200)


@pytest.mark.parametrize("precision, kept", (("tf32", True), ("ieee", False), ("tf32x3", False)))
def test_the_precision_decides_the_plan(precision, kept, monkeypatch):
    run, seen = scan_launch_gpu.plan_for, []
    monkeypatch.setattr(scan_launch_gpu, "plan_for", lambda *a: (seen.append(run(*a)), seen[-1])[1])
    seqkernels.set_float32_precision(precision)
    try:
        problem = Problem("lstm", (2, 3, 5, 40, 1, False, True), torch.float32)
        forward = scan_gpu.forward("lstm", problem.x, problem.h, problem.c, problem.weights, False, False)
    finally:
        seqkernels.set_float32_precision(None)
    assert [plan.regime == "whole" for plan in seen] == [kept]
    torch.testing.assert_close(forward[0], problem.run(problem.x, problem.h, problem.c, problem.weights)[0])


def test_regimes_follow_the_size_and_the_device():
    def regime(H, B=16, device=H200):
        return regimes.plan_for("lstm", H, B, 1, 2, device).regime

    assert [regime(H) for H in (64, 768, 4096, 8192)] == ["whole", "grid", "streamed", "stepwise"]
    alone = regimes.Device(132, 65_536, cooperative=False)
    assert [regime(H, device=alone) for H in (64, 768)] == ["whole", "stepwise"]
    wide = [c for c in (None, (8, 0), (9, 0), (10, 3), (12, 0)) if regimes.wide_products(c)]
    assert wide == [(9, 0), (10, 3)], "compute capability 12.x keeps operands in registers, as 8.x does"
    narrow = regimes.Device(108, 166_912, cooperative=True, wide=False)
    assert [regime(H, device=narrow) for H in (16, 17, 64, 768)] == ["whole", "grid", "grid", "grid"]
