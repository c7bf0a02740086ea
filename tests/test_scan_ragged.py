"""The CPU's scan of rows that end early or start again, against the reference in float64: every output and gradient."""

import math

import pytest
import torch
from agreement import assert_agree
from cell_cases import cells_and_dtypes, in_float64
from ragged_problem import RaggedProblem, empty_batch, twice
from torch.library import opcheck

from seqkernels import functional
from seqkernels.ops import splits


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


@cells_and_dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lengths(cell, dtype, shape):
    lengths = [0] if shape[:2] == (1, 1) else lengths_of(*shape[:2])
    assert_right(RaggedProblem(cell, shape, dtype, [41] if shape[1] == 1 else lengths))


@cells_and_dtypes
@pytest.mark.parametrize("given", [True, False], ids=["given", "zero"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_resets(cell, dtype, shape, given):
    assert_right(RaggedProblem(cell, shape, dtype, None, marks_of(*shape[:2]), given))


@cells_and_dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_lengths_and_resets(cell, dtype, shape):
    lengths = [41] if shape[1] == 1 else lengths_of(*shape[:2])
    assert_right(RaggedProblem(cell, shape, dtype, lengths, marks_of(*shape[:2])))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("lengths, marks", [(True, False), (False, True), (True, True)], ids=["ends", "resets", "both"])
def test_a_gradient_that_enters_by_one_output(cell, lengths, marks):
    shape = SHAPES["odd"]
    given = (lengths_of(*shape[:2]) if lengths else None, marks_of(*shape[:2]) if marks else None)
    for dy in (True, False):
        assert_right(RaggedProblem(cell, shape, torch.float64, *given), dy, not dy)


EXTREMES = {
    "all empty": ([0, 0, 0, 0], None),
    "one left": ([0, 1, 0, 0], [(0, 1), (2, 2)]),
    "all whole": ([4, 4, 4, 4], None),
    "all whole, no marks": ([4, 4, 4, 4], []),
    "marks everywhere": (None, [(t, b) for t in range(4) for b in range(4)]),
    "marks past ends alone": ([1, 2, 0, 3], [(1, 0), (3, 1), (0, 2), (3, 3)]),
}


@in_float64()
@pytest.mark.parametrize("lengths, marks", EXTREMES.values(), ids=EXTREMES)
def test_extremes(cell, lengths, marks):
    assert_right(RaggedProblem(cell, (4, 4, 3, 18, 2, False, True), torch.float64, lengths, marks))


@in_float64()
def test_what_lies_past_an_end_reaches_nothing(cell):
    problem = RaggedProblem(cell, (5, 4, 3, 18, 2, False, True), torch.float64, [3, 0, 5, 1], marks_of(5, 4))
    past = torch.arange(5)[:, None] >= problem.ragged.lengths
    problem.x[past] = 0
    exact = problem.by_reference(torch.float64)
    problem.x[past] = problem.dy[past] = math.nan
    assert_agree(problem.ours(), exact, exact)


def test_a_row_that_starts_again_forgets_what_was_not_a_number():
    problem = RaggedProblem("gru", (4, 3, 5, 20, 1, False, True), torch.float64, None, [(2, 1)])
    problem.x[1, 1, 2] = math.nan
    ours, exact = problem.ours(), problem.by_reference(torch.float64)
    assert ours["y"][1, 1].isnan().any() and ours["y"][2:].isfinite().all()
    torch.testing.assert_close(ours["y"], exact["y"], equal_nan=True, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("threads", [2, 3])
def test_same_bits_for_any_number_of_threads(cell, threads):
    for shape in ((40, 67, 128, 96, 1, False, True), (30, 48, 64, 130, 2, True, True)):
        problem = RaggedProblem(cell, shape, torch.float32, lengths_of(*shape[:2]), marks_of(*shape[:2]))
        torch.set_num_threads(1)
        alone = problem.ours()
        torch.set_num_threads(threads)
        together = problem.ours()
        for name, value in alone.items():
            assert torch.equal(value, together[name]), name


def test_threads_share_the_steps_evenly():
    lengths = torch.tensor([100] * 24 + [1] * 72)
    (first, *_, last) = splits.row_ranges(96, 4, 2, lengths)
    work = [int(lengths[a:b].sum()) for a, b in (first, last)]
    assert first[0] == 0 and last[1] == 96 and first[1] == last[0] < 24
    assert max(work) < 0.6 * sum(work)


SECOND = [("lstm", True, True), ("gru", True, False), ("gru", False, True), ("rnn_tanh", True, True)]


@pytest.mark.parametrize("cell, lengths, marks", SECOND)
def test_functional_scan_and_second_gradients(cell, lengths, marks):
    given = [3, 0, 2, 1, 3] if lengths else None, marks_of(3, 5) if marks else None
    problem = RaggedProblem(cell, (3, 5, 3, 4, 2, True, True), torch.float64, *given)
    exact = twice(problem, torch.float64, "reference")
    assert_agree(twice(problem, torch.float64, "kernel"), exact, exact)


STATES = [(True, True), (True, False), (False, True), (False, False)]


@in_float64()
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("lengths, marks", STATES)
def test_all_states_on_request(cell, batch_first, lengths, marks):
    T, B = 70, 5
    given = lengths_of(T, B) if lengths else None, marks_of(T, B) if marks else None
    problem = RaggedProblem(cell, (T, B, 3, 20, 2, batch_first, True), torch.float64, *given)
    pair = (*problem.reset_state, None)[:2] if marks else None
    options = {"batch_first": batch_first, "lengths": problem.ragged.lengths, "reset": problem.ragged.reset}
    options |= {"reset_state": pair, "return_states": True}
    arguments = (cell, problem.x, problem.h, problem.c, problem.weights)
    ours, theirs = (functional.scan(*arguments, **options, impl=impl) for impl in ("kernel", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    with pytest.raises(NotImplementedError, match="return_states= where a gradient is needed"):
        functional.scan(cell, problem.x.requires_grad_(), *arguments[2:], **options, impl="kernel")


def operator_arguments(cell, ragged):
    """Of `seqkernels::scan`, with lengths, reset, reset_h and reset_c as far as given; they require gradients."""
    problem = RaggedProblem(cell, (2, 2, 2, 3, 1, True, False), torch.float64, [1, 2], [(0, 0), (1, 1)])
    tensors = [t for t in (problem.x, problem.h, problem.c, *problem.weights, *problem.reset_state) if t is not None]
    for tensor in tensors:
        tensor.requires_grad_()
    return (cell, problem.x, problem.h, problem.c, problem.weights, True, True, *problem.ragged[:ragged])


def packed_arguments(cell):
    """Of the same, with batch_sizes."""
    cell, _, h, c, weights, *_ = operator_arguments(cell, 0)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    return (cell, x, h, c, weights, False, True, None, None, None, None, torch.tensor([2, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("cell, ragged", [("lstm", 4), ("gru", 2), ("rnn_tanh", 1), ("lstm", None), ("gru", None)])
def test_opcheck(cell, ragged):
    given = packed_arguments(cell) if ragged is None else operator_arguments(cell, ragged)
    opcheck(torch.ops.seqkernels.scan.default, given)
    y, h_n, c_n, *saved = (t.detach() for t in torch.ops.seqkernels.scan(*given))
    upstream = [torch.randn_like(t).requires_grad_() for t in (y, h_n, c_n)][: 3 if cell == "lstm" else 2]
    upstream = (*upstream, None)[:3]
    given = (cell, *upstream, *given[1:5], *saved, given[5], True, True, *given[7:])
    opcheck(torch.ops.seqkernels.scan_backward.default, given)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_gradients_of_packed_rows(cell):
    _, x, h, c, weights, _, _, *ragged = packed_arguments(cell)
    leaves = [t for t in (x, h, c, *weights) if t is not None]

    def run(x, h, *rest):
        c, *own = (None, *rest) if cell == "gru" else rest
        return torch.ops.seqkernels.scan(cell, x, h, c, own, False, True, *ragged)[: 2 if cell == "gru" else 3]

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_recompute_gives_the_same_gradients():
    problem = RaggedProblem("lstm", (5, 4, 3, 6, 2, True, True), torch.float64, [3, 0, 5, 1], marks_of(5, 4))
    leaves = [t.requires_grad_() for t in (problem.x, problem.h, problem.c, *problem.weights, *problem.reset_state)]
    options = {"batch_first": True, "lengths": problem.ragged.lengths, "reset": problem.ragged.reset}
    options["reset_state"] = problem.reset_state
    results = []
    for recompute in (False, True):
        given = ("lstm", problem.x, problem.h, problem.c, problem.weights)
        out = functional.scan(*given, **options, recompute=recompute, impl="kernel")
        results.append(torch.autograd.grad(out.y.sin().sum() + out.c_n.sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


def test_an_empty_batch():
    given, options = empty_batch()
    with torch.no_grad():
        out = functional.scan(*given, **options, return_states=True, impl="kernel")
    assert out.c.shape == (1, 2, 0, 4) and out.gates.shape == (1, 2, 4, 0, 4)


def test_compiled_whole():
    problem = RaggedProblem("lstm", (4, 3, 3, 6, 2, True, True), torch.float64, [2, 4, 0], marks_of(4, 3))
    lengths, reset, *state = problem.ragged[:4]
    given = ("lstm", problem.x.requires_grad_(), problem.h, problem.c, problem.weights)

    def run(lengths, reset):
        options = {"batch_first": True, "lengths": lengths, "reset": reset, "reset_state": state}
        return functional.scan(*given, **options)[:3]

    ours, theirs = torch.compile(run, backend="aot_eager", fullgraph=True)(lengths, reset), run(lengths, reset)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(y.sin().sum() + h.sum() + c.sum(), given[1]) for y, h, c in (ours, theirs)]
    torch.testing.assert_close(*gradients)
