"""The scan driver and its kernels against torch.nn in float64: outputs, final states, every gradient."""

import math

import pytest
import torch
from agreement import assert_agree
from cell_cases import cells_and_dtypes, in_float64
from scan_problem import Problem
from seqkernels.kernels.cells import CELLS

# T, B, I, H, directions, batch_first, bias
SHAPES = {
    "odd": (5, 3, 7, 33, 2, True, True),
    "flat": (63, 2, 20, 64, 1, False, False),
    "row": (200, 1, 33, 40, 2, False, True),
    "blocks": (20, 40, 65, 130, 1, True, True),
    "wide": (3, 200, 9, 17, 2, False, False),
    "deep": (2, 7, 300, 290, 1, False, True),
}
cells = pytest.mark.parametrize("cell", CELLS)


@cells_and_dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_torch(cell, dtype, shape):
    problem = Problem(cell, shape, dtype)
    assert_agree(problem.ours(), problem.by_reference(torch.float64), problem.by_reference(dtype))


@cells_and_dtypes
def test_agrees_on_single_numbers(cell, dtype):
    """T = B = I = H = 1, over many draws: the error of one number says how much of it cancelled, not how good it is."""
    problems = [Problem(cell, (1, 1, 1, 1, 1, False, True), dtype) for _ in range(20)]
    draws = [
        [run(problem) for problem in problems]
        for run in (Problem.ours, lambda p: p.by_reference(torch.float64), lambda p: p.by_reference(dtype))
    ]
    assert_agree(*({name: torch.stack([d[name] for d in runs]) for name in runs[0]} for runs in draws))


@cells
@pytest.mark.parametrize("scale", [1e-3, 30.0], ids=["small", "saturated"])
def test_agrees_on_small_and_saturated_inputs(cell, scale):
    problem = Problem(cell, (9, 5, 11, 24, 1, False, True), torch.float32, scale)
    assert_agree(problem.ours(), problem.by_reference(torch.float64), problem.by_reference(torch.float32))


@in_float64()
@pytest.mark.parametrize("dy, dstates", [(True, False), (False, True)], ids=["y only", "states only"])
def test_gradients_that_enter_by_one_output(cell, dy, dstates):
    problem = Problem(cell, (6, 4, 5, 18, 2, True, True), torch.float64)
    exact = problem.by_reference(torch.float64, dy, dstates)
    assert_agree(problem.ours(dy, dstates), exact, exact)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_for_any_number_of_threads(cell, threads):
    shapes = ((40, 67, 128, 96, 1, False, True), (30, 48, 64, 130, 2, True, True), (90, 3, 40, 200, 1, True, False))
    for shape in shapes:
        problem = Problem(cell, shape, torch.float32)
        torch.set_num_threads(1)
        alone = problem.ours()
        torch.set_num_threads(threads)
        together = problem.ours()
        for name, value in alone.items():
            assert torch.equal(value, together[name]), name


@in_float64()
def test_the_output_may_be_written_to_before_the_backward(cell):
    problem = Problem(cell, (6, 4, 5, 18, 2, True, True), torch.float64)
    untouched = problem.ours()
    written = problem.ours(after_forward=lambda y: y.fill_(math.nan))
    for name in ("dx", "dh_0", "dw0", "dw1"):
        assert torch.equal(untouched[name], written[name]), name


@in_float64()
def test_inputs_of_any_strides(cell):
    problem = Problem(cell, (6, 4, 10, 18, 1, False, True), torch.float64)
    exact = problem.by_reference(torch.float64)
    wide = torch.full((9, 8, 30), math.nan, dtype=torch.float64)
    view = wide[1:7, ::2, 3:13]
    problem.x = view.copy_(problem.x)
    assert_agree(problem.ours(), exact, exact)


@cells
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_flow_through_as_in_torch(cell, value):
    problem = Problem(cell, (4, 3, 5, 20, 1, False, True), torch.float32)
    problem.x[1, 1, 2] = value
    ours, exact = problem.ours(), problem.by_reference(torch.float32)
    for name in ("y", "h_n"):
        torch.testing.assert_close(ours[name], exact[name], equal_nan=True)
    assert torch.equal(ours["dx"].isnan(), exact["dx"].isnan())


def test_retained_graph_gives_the_same_gradients_again():
    problem = Problem("lstm", (6, 4, 5, 18, 1, False, True), torch.float32)
    first, second = problem.ours(), problem.ours()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_vanishing_states_do_not_slow_or_change_the_mode():
    """States that shrink below the smallest normal number are flushed; the caller's own mode stays."""
    problem = Problem("rnn_tanh", (300, 2, 4, 16, 1, False, False), torch.float32)
    problem.x.zero_()
    problem.h.fill_(1e-30)
    problem.weights[1].copy_(0.5 * torch.eye(16))
    y = problem.ours()["y"]
    assert y[-1].abs().max() == 0
    assert torch.tensor([1e-40]).mul(1.0).item() > 0
