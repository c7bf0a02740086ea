"""Cases, providers and races: every case runs at smoke size, and whoever is wrong gets no time."""

import json
from dataclasses import replace

import pytest
import torch
from seqkernels.bench import problems, providers, race
from seqkernels.bench.cases import GRID, SHAPES, Case, select
from seqkernels.bench.targets import TARGETS

SMOKE = sorted({case.smoke() for case in GRID}, key=lambda case: case.name)
PAIRS = [(case, peer) for case in SMOKE for peer in providers.PEERS]


def test_names_are_unique_and_cases_survive_json():
    assert len({case.name for case in GRID}) == len(GRID)
    assert [Case(**json.loads(json.dumps(case.as_dict()))) for case in GRID] == GRID


def test_subsets_are_nested():
    quick, default, full = (set(select(name)) for name in ("quick", "default", "full"))
    assert quick < default < full == set(GRID)


@pytest.mark.parametrize("operation", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_grid_has_every_shape(operation, mode):
    plain = [
        c
        for c in GRID
        if (c.operation, c.mode, c.L, c.bidirectional, c.dtype) == (operation, mode, 1, False, "float32")
    ]
    assert set(SHAPES) <= {(case.T, case.B, case.H) for case in plain}


def test_grid_spans_what_it_should():
    assert len(GRID) >= 60
    assert {case.B for case in GRID} >= {1, 8, 30, 31, 32, 33, 64}
    assert {case.H for case in GRID} >= {33, 64, 200, 1000, 1024}
    assert {case.T for case in GRID} >= {1, 64, 128, 512, 2048}
    kinds = {(case.operation, case.mode, case.dtype) for case in GRID}
    for operation in ("lstm", "gru", "rnn"):
        mine = [case for case in GRID if case.operation == operation]
        for mode in ("forward", "training"):
            assert {(operation, mode, dtype) for dtype in ("float32", "bfloat16")} < kinds
            assert any(case.ragged and case.mode == mode for case in mine)
            assert any(case.L == 2 and case.bidirectional and case.mode == mode for case in mine)
        assert {case.B for case in mine if case.mode == "step"} == {1, 32}
        assert {(f"{operation}_cell", mode, "float32") for mode in ("step", "training")} < kinds
    for causal in (False, True):
        modes = {case.mode for case in GRID if case.operation == "attention" and case.causal == causal}
        assert modes == {"forward", "backward", "training"}
    assert {case.T for case in GRID if case.operation == "decode"} == {1024, 4096, 16384}


def test_ragged_lengths():
    case = Case("lstm", T=128, B=32, H=9, ragged=True)
    assert case.lengths[0] == 128 and case.lengths[-1] == 4 and case.lengths == sorted(case.lengths, reverse=True)
    assert min(replace(case, T=5).lengths) == 1 and replace(case, ragged=False).lengths == [128] * 32
    problem = problems.make(replace(case, T=5, B=3, mode="training"))
    assert problem.batch_sizes.tolist() == [3, 2, 2, 1, 1] and problem.inputs[0].shape == problem.dy.shape == (9, 9)


def test_every_target_has_rows():
    counts = {target.text: sum(target.covers(case) for case in GRID) for target in TARGETS}
    assert counts == {
        "every row": len(GRID),
        "LSTM, inference": 18,
        "GRU, inference": 18,
        "RNN, inference": 18,
        "LSTM, training": 16,
        "GRU, training": 10,
        "RNN, training": 10,
        "single steps, of cells and of layers": 24,
        "nn.LSTM with T=1, B=1": 4,
        "attention, inference": 5,
        "attention, inference, bfloat16": 2,
        "attention, backward and training": 7,
        "decode, 16384 keys": 1,
        "LSTM, bfloat16": 3,
        "ragged rows against PackedSequence": 7,
        "inference, B ≥ 32, H ≥ 256": 21,
        "training, B ≥ 32, H ≥ 256": 13,
        "inference and steps, B = 1": 27,
        "threads on inference, B ≥ 32, H ≥ 256": 21,
    }


def test_initial_states_are_not_zero():
    problem = problems.make(SMOKE[-1])
    assert all(tensor.abs().min() > 0 for tensor in problem.inputs)


@pytest.mark.parametrize(("case", "peer"), PAIRS, ids=[f"{case.name}-{peer}" for case, peer in PAIRS])
def test_every_case_runs(case, peer):
    peer = providers.PEERS[peer]
    reason = peer.refuses(case)
    if reason:
        assert "not installed" in reason or peer.name != "torch"
        return
    torch._dynamo.reset()
    record = race.compete(case, (providers.OURS, peer), seconds=0, threads=1)
    assert record["status"] == "ok", record
    assert len(record["ours"]["rounds"]) == len(record["peer"]["rounds"]) >= 7
    assert min(record["ours"]["rounds"] + record["peer"]["rounds"]) > 0


def _changed(change):
    """A provider that spoils the first of torch's results."""

    def build(problem, threads):
        call = providers.PEERS["torch"].build(problem, threads)

        def spoilt():
            first, *others = call()
            return [change(first), *others]

        return spoilt

    return replace(providers.OURS, name="spoilt", build=build)


@pytest.mark.parametrize(
    "change",
    [lambda y: y * 1.0001, lambda y: y[..., :-1], lambda y: y.clone().fill_(float("nan")), lambda y: y.flip(0)],
    ids=["scaled", "shape", "nan", "order"],
)
@pytest.mark.parametrize("place", [0, 1], ids=["as-ours", "as-peer"])
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_a_wrong_provider_gets_no_time(change, place, mode):
    pair = [providers.PEERS["torch"], providers.PEERS["torch"]]
    pair[place] = _changed(change)
    record = race.compete(Case("lstm", mode, T=4, B=2, H=5), pair, seconds=0, threads=1)
    assert record["status"] == "wrong"
    assert "rounds" not in record["ours"] and "rounds" not in record["peer"]
    assert record[("ours", "peer")[place]]["error"] > record["limit"]


def test_a_wrong_gradient_is_seen():
    def build(problem, threads):
        call = providers.PEERS["torch"].build(problem, threads)
        return lambda: [*call()[:-1], torch.zeros_like(call()[-1])]

    wrong = replace(providers.OURS, build=build)
    record = race.compete(Case("gru", "training", T=4, B=2, H=5), (wrong, providers.PEERS["torch"]), 0, 1)
    assert record["status"] == "wrong"


def test_a_pair_races_in_a_process_of_its_own():
    case = Case("rnn_cell", "step", H=9)
    record = race.run(case, "torch", seconds=0, threads=1)
    assert (record["status"], record["name"], record["threads"]) == ("ok", case.name, 1), record
    assert record["compilations"] >= 0 and record["ours"]["first_seconds"] > 0


def test_a_process_that_dies_is_reported():
    record = race.run(Case("lstm", "no such mode", T=0, H=3), "torch", seconds=0, threads=1)
    assert record["status"] == "failed" and record["reason"]
