"""The Triton scans of rows that end early or start again, against the reference in float64: on a GPU or interpreted."""


import pytest
import torch
from agreement import assert_agree
from bfloat16_interpreter import repair
from cooperative import POLICIES, cooperative
from ragged_problem import RaggedProblem, empty_batch, twice
from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu import regimes
from torch.library import opcheck
from torch.nn.utils.rnn import pack_sequence

from seqkernels import _backends, functional, nn, reference
from seqkernels.ops import scan_gpu

if not torch.cuda.is_available():
    repair()

slow = pytest.mark.slow
# T, B, I, H, directions, batch_first, bias
SHAPE = 3, 5, 3, 17, 2, False, True
LENGTHS = [3, 0, 2, 1, 3]
# (step, row): first and last; past the end of an empty row; last valid one and past it; only one; two in succession
RESET = [(0, 0), (2, 0), (1, 1), (1, 2), (2, 2), (0, 3), (1, 4), (2, 4)]
EVERYWHERE = [(step, row) for step in range(SHAPE[0]) for row in range(SHAPE[1])]
# One after another, as the interpreter runs programs, only one block of units may wait.
PLANS = {
    "whole": regimes.Plan("whole", 32, 16, 32, 4),
    "grid": regimes.Plan("grid", 32, 16, 32, 4),
    "streamed": regimes.Plan("streamed", 32, 16, 16, 4),
    "stepwise": regimes.Plan("stepwise", 16, 16, 32, 4),
}


def assert_right(problem, plan, *enters):
    exact, close = (problem.by_reference(dtype, *enters) for dtype in (torch.float64, problem.x.dtype))
    assert_agree(problem.ours(*enters, driver=scan_gpu, plan=plan), exact, close)


BOTH = [
    pytest.param(cell, plan, marks=slow if plan[0] == "s" and cell in ("rnn_relu", "rnn_sigmoid") else ())
    for cell in CELLS
    for plan in PLANS
]


@pytest.mark.parametrize("cell, plan", BOTH)
def test_rows_that_end_and_start_again(cell, plan):
    assert_right(RaggedProblem(cell, SHAPE, torch.float32, LENGTHS, RESET), PLANS[plan])


VARIANTS = {
    "lengths": ("lstm", "grid", SHAPE, LENGTHS, None),
    "one step": ("gru", "whole", (1, 4, 3, 17, 2, False, False), [1, 0, 0, 1], [(0, 0), (0, 1)]),
    "from zero": ("lstm", "whole", SHAPE, None, RESET, False),
    "both, batch first": ("gru", "grid", (3, 5, 3, 17, 2, True, False), LENGTHS, RESET, False),
    "everywhere": ("lstm", "grid", SHAPE, None, EVERYWHERE),
    "nowhere": ("gru", "whole", SHAPE, [3] * 5, []),
    "one row": ("lstm", "grid", (3, 1, 3, 17, 2, True, True), [2], [(0, 0), (2, 0)]),
    "one row, weights streamed": ("rnn_tanh", "stepwise", (2, 1, 3, 17, 2, True, False), [1], [(1, 0)], False),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants(variant):
    cell, regime, shape, *ragged = variant
    assert_right(RaggedProblem(cell, shape, torch.float32, *ragged), PLANS[regime])


HALF = [
    ("lstm", "whole", torch.bfloat16),
    pytest.param("gru", "grid", torch.float16, marks=slow),
    pytest.param("gru", "stepwise", torch.bfloat16, marks=slow),
    pytest.param("lstm", "grid", torch.float16, marks=slow),
]


@pytest.mark.parametrize("cell, plan, dtype", HALF, ids=str)
def test_half_precision(cell, plan, dtype):
    assert_right(RaggedProblem(cell, SHAPE, dtype, LENGTHS, RESET), PLANS[plan])


@pytest.mark.parametrize("cell, plan, dy", [("lstm", "grid", True), ("gru", "whole", False)])
def test_gradients_that_enter_by_one_output(cell, plan, dy):
    assert_right(RaggedProblem(cell, SHAPE, torch.float32, LENGTHS, RESET), PLANS[plan], dy, not dy)


ENDS = [
    ("gru", "whole"),
    ("rnn_relu", "grid"),
    pytest.param("lstm", "grid", marks=slow),
    pytest.param("gru", "stepwise", marks=slow),
]


@pytest.mark.parametrize("cell, plan", ENDS)
def test_what_lies_past_an_end_reaches_nothing(cell, plan):
    problem = RaggedProblem(cell, SHAPE, torch.float32, LENGTHS, RESET)
    past = torch.arange(SHAPE[0])[:, None] >= problem.ragged.lengths
    problem.x[past] = 0
    references = problem.by_reference(torch.float64), problem.by_reference(torch.float32)
    problem.x[past] = problem.dy[past] = float("nan")
    assert_agree(problem.ours(driver=scan_gpu, plan=PLANS[plan]), *references)


SCHEDULES = [
    ("rnn_tanh", 0, "random"),
    *(pytest.param(cell, seed, policy, marks=slow) for cell in CELLS for seed, policy in enumerate(POLICIES, 1)),
]


@pytest.mark.parametrize("cell, seed, policy", SCHEDULES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA, Triton's kernels are not interpreted")
def test_programs_that_wait_for_each_other(cell, seed, policy):
    """Three blocks of units, in two chunks."""
    problem = RaggedProblem(cell, (3, 3, 5, 40, 2, True, True), torch.float32, [3, 0, 2], [(0, 0), (2, 0), (1, 2)])
    with cooperative(seed, policy):
        ours = problem.ours(driver=scan_gpu, plan=regimes.Plan("grid", 16, 16, 32, 4))
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.float32))


@pytest.fixture
def triton(monkeypatch):
    """Triton takes CPU tensors."""
    monkeypatch.setattr(_backends, "chosen", "triton")


TWICE = [("lstm", LENGTHS, RESET), ("gru", LENGTHS, None), ("gru", None, RESET)]


@pytest.mark.parametrize("cell, lengths, reset", TWICE, ids=["both", "lengths", "reset"])
def test_functional_scan_and_second_gradients(triton, cell, lengths, reset):
    problem = RaggedProblem(cell, (3, 5, 3, 4, 2, True, True), torch.float32, lengths, reset)
    ours = twice(problem, torch.float32, "kernel")
    assert_agree(ours, twice(problem, torch.float64, "reference"), twice(problem, torch.float32, "reference"))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_all_states_on_request(triton, cell):
    problem = RaggedProblem(cell, (3, 5, 3, 4, 2, True, True), torch.float32, LENGTHS, RESET, False)
    given = (cell, problem.x, problem.h, problem.c, problem.weights)
    options = {"batch_first": True, "lengths": problem.ragged.lengths, "reset": problem.ragged.reset}
    ours = functional.scan(*given, **options, return_states=True, impl="kernel")
    theirs = reference.scan(*given, **options, return_states=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="return_states= where a gradient is needed"):
        functional.scan(cell, problem.x.requires_grad_(), *given[2:], **options, return_states=True, impl="kernel")


def operator_arguments(cell, count):
    """Of `seqkernels::scan`, with so many of lengths, reset, reset_h and reset_c; they require gradients."""
    problem = RaggedProblem(cell, (2, 1, 2, 3, 1, True, False), torch.float32, [1], [(0, 0)])
    for tensor in (problem.x, problem.h, *problem.weights, *problem.reset_state):
        tensor.requires_grad_()
    return (cell, problem.x, problem.h, problem.c, problem.weights, True, True, *problem.ragged[:count])


def test_opcheck_scan(triton):
    opcheck(torch.ops.seqkernels.scan.default, operator_arguments("gru", 3))


@pytest.mark.slow
@pytest.mark.parametrize("cell, count", [("lstm", 4), ("gru", 2), ("rnn_tanh", 1)])
def test_opcheck(triton, cell, count):
    given = operator_arguments(cell, count)
    opcheck(torch.ops.seqkernels.scan.default, given)
    y, h_n, c_n, *saved = (t.detach() for t in torch.ops.seqkernels.scan(*given))
    upstream = [torch.randn_like(t).requires_grad_() for t in (y, h_n, c_n)][: 3 if cell == "lstm" else 2]
    upstream = (*upstream, None)[:3]
    given = (cell, *upstream, *given[1:5], *saved, True, True, True, *given[7:])
    opcheck(torch.ops.seqkernels.scan_backward.default, given)


def test_an_empty_batch(triton):
    empty_batch()


def test_no_gpu_kernel_takes_a_packed_sequence(triton):
    problem = RaggedProblem("rnn_tanh", (2, 2, 3, 4, 1, False, True), torch.float32)
    given = ("rnn_tanh", problem.x.flatten(0, 1), problem.h, None, problem.weights, False, True)
    with pytest.raises(NotImplementedError, match="no GPU kernel takes batch_sizes= yet"):
        torch.ops.seqkernels.scan(*given, batch_sizes=torch.tensor([2, 2]))
    packed = pack_sequence([torch.zeros(3, 4)])
    assert "PackedSequence, which no GPU kernel takes" in nn.LSTM(4, 5).fallback_reason(packed)


def test_what_does_not_fit_is_named(triton):
    T, B, H = 2, 3, 4
    x, h, weights = torch.zeros(T, B, 3), torch.zeros(1, B, H), [torch.zeros(4 * H, 3), torch.zeros(4 * H, H)]
    reset, pair = torch.zeros(T, B, dtype=torch.bool), (h, h)
    bad = {
        r"lengths must be 3 integers, got torch.float32 of size \[3\]": {"lengths": torch.ones(B)},
        "lengths must be 3 integers": {"lengths": torch.ones(B, dtype=torch.bool)},
        r"lengths must be from 0 to 2, got -1 to 3": {"lengths": torch.tensor([-1, 0, 3])},
        "lengths must be on the input's device, cpu, got meta": {"lengths": torch.ones(B, device="meta").long()},
        r"reset must be bool of size \(2, 3\), got torch.bool of size \[3, 2\]": {"reset": reset.T},
        "reset_state is given and reset is not": {"reset_state": pair},
        r"reset_state must be a pair \(h, c\), got 1 values": {"reset": reset, "reset_state": (h,)},
        r"reset_state\[1\] must be given": {"reset": reset, "reset_state": (h, None)},
        r"Expected reset_state\[0\] size \(1, 3, 4\), got \[3, 4\]": {"reset": reset, "reset_state": (h[0], h)},
        r"reset_state\[1\] must have the input's dtype": {"reset": reset, "reset_state": (h, h.double())},
    }
    for message, options in bad.items():
        for impl in ("kernel", "reference"):
            with pytest.raises((ValueError, RuntimeError), match=message):
                functional.scan("lstm", x, h, h, weights, **options, impl=impl)
