"""The Triton step against the reference in float64: on a GPU, or in Triton's interpreter."""

import itertools

import pytest
import torch
from agreement import assert_agree
from bfloat16_interpreter import repair
from device import DEVICE, INTERPRETED
from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu import step_plan

from seqkernels import reference
from seqkernels.ops import scan_gpu, step_gpu

if INTERPRETED:
    repair()

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROWS, UNITS, INPUTS = (1, 3, 17, 40), (1, 16, 33, 70), (1, 7, 40)
# Every pair of B and H; I, the biases and whether x's rows lie apart change in turn.
SHAPES = [
    (B, H, INPUTS[i % 3], i % 2 == 0, i % 5 < 2) for i, (B, H) in enumerate(itertools.product(ROWS, UNITS))
]  # fmt: skip
cells = pytest.mark.parametrize("cell", CELLS)


def problem(cell, shape, dtype, scale=1.0):
    """cell, x (B, I), h, c (B, H) and weights."""
    B, H, I, bias, apart = shape
    rows = CELLS[cell].gates * H
    wide = (scale * torch.randn(B, 2 * I + 3 if apart else I)).to(DEVICE, dtype)
    sizes = [(rows, I), (rows, H), *[(rows,)] * (2 * bias)]
    weights = [torch.empty(size).uniform_(-(H**-0.5), H**-0.5) for size in sizes]
    h, c = torch.randn(B, H), torch.randn(B, H) if CELLS[cell].states == 2 else None
    h, c, *weights = (None if t is None else t.to(DEVICE, dtype) for t in (h, c, *weights))
    return cell, wide[:, :I], h, c, weights


def by_reference(dtype, cell, x, h, c, weights):
    x, h, c, *weights = (None if t is None else t.to(dtype) for t in (x, h, c, *weights))
    return reference.step(cell, x, h, c, weights)


def named(states):
    return {name: state.cpu() for name, state in zip("hc", states) if state is not None}


def check(given, plan=None):
    dtype = given[1].dtype
    ours = named(step_gpu.forward(*given, plan=plan))
    assert_agree(ours, named(by_reference(torch.float64, *given)), named(by_reference(dtype, *given)))


@cells
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_reference(cell, dtype):
    turn = list(CELLS).index(cell) + list(DTYPES).index(dtype)
    for shape in SHAPES[turn % 5 :: 5]:  # every dtype with every shape, in one cell or another
        check(problem(cell, shape, DTYPES[dtype]))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("units, unroll", [(1, 1), (2, 4), (4, 2)])
def test_every_plan_of_one_row_agrees(cell, units, unroll):
    check(problem(cell, (1, 5, 40, True, False), torch.float32), step_plan.StepPlan(units, 1, 16, unroll, units))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("rows, terms", [(16, 32), (64, 16)])
def test_every_plan_of_more_rows_agrees(cell, rows, terms):
    check(problem(cell, (40, 17, 40, True, True), torch.float32), step_plan.StepPlan(16, rows, terms, 1, 4))


@cells
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4], ids=["small", "large", "saturated"])
def test_agrees_on_small_and_saturated_inputs(cell, B, scale):
    check(problem(cell, (B, 4, 7, True, False), torch.float32, scale))


@cells
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_nan_and_infinity_flow_through_as_in_the_reference(cell, B, value):
    for place in (1, 2):  # x, h
        given = problem(cell, (B, 4, 7, True, False), torch.float32)
        given[place][0, 3] = value
        ours, theirs = step_gpu.forward(*given), by_reference(torch.float32, *given)
        assert not torch.isfinite(given[place]).all()
        torch.testing.assert_close(named(ours), named(theirs), equal_nan=True)


@cells
@pytest.mark.parametrize("B", [1, 17])
def test_c_may_move_on_in_place_and_nothing_else_is_written(cell, B):
    cell, x, h, c, weights = problem(cell, (B, 5, 7, True, True), torch.float32)
    expected, kept = step_gpu.forward(cell, x, h, c, weights), [t.clone() for t in (x, h, *weights)]
    # One more row before and after, which stays NaN.
    outputs = [torch.full((B + 2, 5), float("nan"), device=DEVICE) for _ in range(2)]
    h_next, c_next = (t[1:-1] for t in outputs)
    if c is not None:
        c = c_next.copy_(c)
    step_gpu.write(cell, x, h, c, weights, h_next, c)
    assert torch.equal(h_next, expected[0]) and (c is None or torch.equal(c, expected[1]))
    assert all(t[[0, -1]].isnan().all() for t in outputs)
    assert all(map(torch.equal, (x, h, *weights), kept))


@cells
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_scan_of_one_step_without_a_backward_is_a_step(cell, batch_first, monkeypatch):
    cell, x, h, c, weights = problem(cell, (3, 16, 7, True, False), torch.float32)
    weights[0] = weights[0].T.contiguous().T
    time, c_0 = 1 if batch_first else 0, None if c is None else c[None]
    arguments = (cell, x.unsqueeze(time), h[None], c_0, weights, batch_first)
    *outputs, states, gates = scan_gpu.forward(*arguments, True)
    assert states is not None and gates is not None
    monkeypatch.setattr(scan_gpu, "Forward", None)
    *quick, states, gates = scan_gpu.forward(*arguments, False)
    assert states is None and gates is None
    torch.testing.assert_close(quick, outputs)
    memory = [t.data_ptr() for t in quick if t is not None]
    assert len(set(memory)) == len(memory), "an output is a view of another"


H200, SIZES = 132, (1, 16, 17, 33, 128, 256, 384, 512, 1000, 4096)


@cells
@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_plan_covers_all_and_its_blocks_are_legal(cell, itemsize):
    for H, B, processors in itertools.product(SIZES, (1, 2, 16, 33, 64, 500), (1, 108, H200, 304)):
        plan = step_plan.plan_for(cell, H, B, itemsize, processors)
        assert plan.programs(H, B) >= -(-H // plan.units) and plan.programs(H, B) * plan.units * plan.rows >= H * B
        assert all(n > 0 and n & (n - 1) == 0 for n in (plan.units, plan.rows, plan.terms, plan.warps))
        assert plan.unroll >= 1
        if B == 1:
            assert plan.rows == 1
            assert plan.terms * itemsize == 512 and plan.units == plan.warps, "16 bytes a thread, a unit a warp"
        else:
            assert min(plan.units, plan.rows, plan.terms) >= 16, "a tensor core's tile"
            assert plan.rows // 2 < max(B, 16), "half of the rows would do"


@cells
@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_plan_fills_the_device(cell, itemsize):
    def programs(H, B):
        return step_plan.plan_for(cell, H, B, itemsize, H200).programs(H, B)

    assert all(programs(H, 1) >= 0.75 * H200 for H in SIZES if H >= 99)
    assert programs(512, 1) == 128
    assert programs(33, 1) == 33, "a unit a program where there are no more"
    assert programs(512, 64) == 128 and programs(4096, 16) == 256
