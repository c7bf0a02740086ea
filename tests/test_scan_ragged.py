"""The CPU's scan of rows that end early or start again, against the reference in float64: every output and gradient."""

import pytest
import torch
from agreement import assert_agree
from ragged_problem import RaggedProblem
from seqkernels.kernels.cells import CELLS

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def lengths_of(T, B):
    """Of B rows: some empty, some whole, equal ones among them, in no order."""
    return [(7 * b * b + 3 * b) % (T + 1) for b in range(B)]


def marks_of(T, B):
    """(step, row): at the first and the last step, in succession, and past ends."""
    return sorted({(t, b) for b in range(B) for t in range(T) if (5 * t + 3 * b * b + t * b) % 4 == 0})


# T, B, I, H, directions, batch_first, bias
SHAPES = {
    "odd": (5, 3, 7, 33, 2, True, True),
    "one step": (1, 5, 4, 17, 2, False, False),
    "row": (70, 1, 33, 40, 2, False, True),
    "few rows in two chunks": (63, 7, 5, 18, 2, False, True),
    "chunks": (20, 40, 65, 130, 2, True, True),
    "a step a chunk": (3, 200, 9, 17, 2, False, False),
}


def assert_right(problem, *enters):
    exact, close = (problem.by_reference(dtype, *enters) for dtype in (torch.float64, problem.x.dtype))
    assert_agree(problem.ours(*enters), exact, close)


@cells
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lengths(cell, dtype, shape):
    lengths = [0] if shape[:2] == (1, 1) else lengths_of(*shape[:2])
    assert_right(RaggedProblem(cell, shape, dtype, [41] if shape[1] == 1 else lengths))


@cells
@dtypes
@pytest.mark.parametrize("given", [True, False], ids=["given", "zero"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_resets(cell, dtype, shape, given):
    assert_right(RaggedProblem(cell, shape, dtype, None, marks_of(*shape[:2]), given))


@cells
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lengths_and_resets(cell, dtype, shape):
    lengths = [41] if shape[1] == 1 else lengths_of(*shape[:2])
    assert_right(RaggedProblem(cell, shape, dtype, lengths, marks_of(*shape[:2])))
