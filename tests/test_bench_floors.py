"""Floors: operations and bytes against what torch counts or a loop adds up, and which level of memory serves them."""

import pytest
import torch
from seqkernels.bench import ceilings, floors, library, machine, problems
from seqkernels.bench.cases import GRID, Case
from torch.utils.flop_counter import FlopCounterMode

from seqkernels import reference

CEILINGS = {
    "operations": {"float32": 1e9, "float64": 5e8, "bfloat16": 2e9},
    "levels": [["L1", 1000, 1e6], ["memory", None, 1e5]],
}


def loop(net, x):
    """The products of a layer's time loop, one after another, as torch counts them."""
    h = torch.zeros(x.shape[1], net.hidden_size)
    for x_t in x.unbind(0):
        h = (x_t @ net.weight_ih_l0.T + h @ net.weight_hh_l0.T)[:, : net.hidden_size].tanh()
    return h


@pytest.mark.parametrize("operation", ["lstm", "gru", "rnn"])
def test_operations_of_a_layer(operation):
    case = Case(operation, T=7, B=3, H=5)
    net = problems.module(torch.nn, case)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loop(net, torch.randn(7, 3, 5))
    assert floors.work(case)[0] == counter.get_total_flops()


def test_operations_of_stacks_and_ragged_rows():
    plain = Case("lstm", T=4, B=2, H=5)
    assert floors.work(plain)[0] == 2 * 8 * 4 * 5 * 10
    # Above the first layer, inputs of both directions: 5 + 5 and 10 + 5 columns.
    assert floors.work(Case("lstm", T=4, B=2, H=5, L=2, bidirectional=True))[0] == 2 * 8 * 2 * 20 * (10 + 15)
    assert floors.work(Case("lstm", T=4, B=2, H=5, ragged=True))[0] == 2 * (4 + 2) * 20 * 10
    assert floors.work(Case("lstm", "training", T=4, B=2, H=5))[0] == 3 * floors.work(plain)[0]
    assert floors.work(Case("gru_cell", "step", B=2, H=5))[0] == 2 * 2 * 15 * 10


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_operations_of_attention(mode):
    """Backward, torch's plain operators keep the scores: 8 D a pair, and 2 D to make them again."""
    case = Case("attention", mode, T=6, N=2, D=8)
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        out = reference.scaled_dot_product_attention(q, k, v)
        if mode == "training":
            out.sum().backward()
    again = 2 * 8 * 2 * 6 * 6 if mode == "training" else 0
    assert floors.work(case)[0] == counter.get_total_flops() + again


def test_operations_of_causal_attention_and_decode():
    pairs = sum(key <= query for query in range(6) for key in range(6))
    assert floors.work(Case("attention", T=6, B=3, N=2, D=8, causal=True))[0] == 3 * 2 * 4 * 8 * pairs
    assert floors.work(Case("decode", T=6, B=3, N=2, D=8))[0] == 3 * 2 * 4 * 8 * 6


@pytest.mark.parametrize("mode", ["forward", "training", "backward"])
def test_bytes_of_attention(mode):
    """All that goes in and comes out of a call, the query's length being that of the keys."""
    case = Case("attention", mode, T=6, B=3, N=2, D=8)
    problem = problems.make(case)
    with problems.grad_mode(case):
        results = problems.results(problems.call(library.native(), problem))
    tensors = [*problem.inputs, *results, *([] if problem.dy is None else [problem.dy])]
    ((moved, held),) = floors.work(case)[1]
    assert moved == held == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_bytes_of_a_layer(mode, both):
    """Weight matrices, x and y, and in training their gradients; states and biases are left out: the floor is lower."""
    case = Case("gru", mode, T=6, B=3, H=5, bidirectional=both)
    problem = problems.make(case)
    matrices = [value for name, value in problem.weights.items() if name.startswith("weight")]
    y = torch.empty(6, 3, 5 * (1 + both))
    once = sum(tensor.nbytes for tensor in (*matrices, problem.inputs[0], y)) * (2 if mode == "training" else 1)
    recurrent = problem.weights["weight_hh_l0"].nbytes
    steps = 6 * (1 + both) * (2 if mode == "training" else 1)
    assert floors.work(case)[1] == [(once, once), (steps * recurrent, recurrent)]


def test_bfloat16_moves_half_and_multiplies_at_its_own_peak():
    single, half = (Case("lstm", T=64, B=32, H=64, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert [2 * moved for moved, _ in floors.work(half)[1]] == [moved for moved, _ in floors.work(single)[1]]
    fast = {**CEILINGS, "levels": [["memory", None, 1e15]]}
    assert floors.seconds(single, fast) == 2 * floors.seconds(half, fast) == floors.work(single)[0] / 1e9


def test_levels():
    """Bytes come from the nearest level that has room; what is left, from beyond. Two threads have twice the room."""
    slow = {**CEILINGS, "operations": {"float32": 1e30}}
    case = Case("rnn_cell", "step", B=1, H=16)
    ((once, _), (recurrent, _)) = floors.work(case)[1]
    assert (once, recurrent) == (4 * (2 * 256 + 2 * 16), 1024)
    assert floors.seconds(case, slow) == pytest.approx(1000 / 1e6 + (once - 1000) / 1e5)
    assert floors.seconds(case, slow, threads=2) == pytest.approx(1000 / 1e6 + (once / 2 - 1000) / 1e5)
    assert floors.seconds(case, slow, threads=4) == pytest.approx(once / 4 / 1e6)


def test_every_case_has_a_floor():
    assert all(floors.seconds(case, CEILINGS) > 0 for case in GRID)


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setattr(ceilings, "SAMPLES", 1)
    monkeypatch.setattr(ceilings, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(ceilings, "LEAST_MEMORY", 2**20)
    monkeypatch.setattr(machine, "cache_bytes", lambda: {"L1": 2**15, "L2": 2**18})
    found = ceilings.measure()
    assert set(found["operations"]) == {"float32", "float64", "bfloat16"}
    assert [level[:2] for level in found["levels"]] == [["L1", 2**15], ["L2", 2**18], ["memory", None]]
    assert all(rate > 0 for rate in (*found["operations"].values(), *(level[2] for level in found["levels"])))
    assert found["operations"]["bfloat16"] >= found["operations"]["float32"]


def test_the_fastest_sample_counts_and_compiling_does_not(monkeypatch):
    clock = iter([0, 1e-3, 1e-2, *[2e-2, 1e-2, 3e-2]])
    called = []
    monkeypatch.setattr(ceilings, "SAMPLES", 3)
    monkeypatch.setattr(ceilings.timing, "wall", lambda call, repeats: call() or next(clock))
    rates = ceilings._rates({"a": (called.append, 10.0), "absent": None})
    assert called == [1, 1, 2, 4, 4, 4, 4] and rates == {"a": pytest.approx(10 * 4 / 1e-2), "absent": 0.0}


def test_caches_are_read_or_assumed(monkeypatch):
    kinds = {"L1 Data": "48K", "L1 Instruction": "64K", "L2 Unified": "2048K", "L3 Unified": "32M"}
    monkeypatch.setattr(machine, "_caches", lambda: kinds)
    assert machine.cache_bytes() == {"L1": 48 * 1024, "L2": 2**21, "L3": 2**25}
    monkeypatch.setattr(machine, "_caches", dict)
    assert machine.cache_bytes() == machine.CACHES
