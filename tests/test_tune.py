"""The search for attention's blocks, at a small size in Triton's interpreter and with made-up times."""

import itertools

import pytest
import torch
from seqkernels.bench import tune
from seqkernels.kernels.gpu.attention_configs import Config

from seqkernels import cli
from seqkernels.ops import attention_gpu

SMALL = {"B": 1, "N": 1, "T": 40}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ticking():
    """A clock that goes on by one second at each look."""
    return itertools.count().__next__


def searched(measure, keys, seconds, **options):
    options = {"device": DEVICE, "clock": ticking(), **SMALL, **options}
    return list(tune.tune(measure, seconds, keys=keys, **options))


@pytest.mark.parametrize("operation", tune.OPERATIONS)
def test_the_fastest_candidate_is_found_and_the_kernels_that_it_is_for_are_run(operation, monkeypatch):
    launched, launch = [], attention_gpu._launch
    monkeypatch.setattr(attention_gpu, "_launch", lambda *a: (launched.append((a[0].__name__, a[-1])), launch(*a))[1])
    costs = iter([5.0, 3.0, 4.0, 6.0])
    (record,) = searched(lambda call: next(costs), [(operation, 16, "float32")], 4)
    second = tune.candidates(Config(**record["present"]))[1]
    assert Config(**record["best"]) == second and (record["best_ms"], record["present_ms"]) == (3.0, 5.0)
    name = operation.split()[-1]
    kernel = "attention_forward" if name == "forward" else f"attention_backward_{name}"
    assert (kernel, second) in launched and not record["failed"]


def test_time_is_shared_and_every_key_tries_two():
    keys = [("forward", D, "float32") for D in (16, 32, 64)]
    assert [r["tried"] for r in searched(lambda call: 1.0, keys, 0)] == [2, 2, 2]
    more = [r["tried"] for r in searched(lambda call: 1.0, keys, 24)]
    assert all(n > 2 for n in more) and sum(more) < 24


def test_what_fails_or_is_wrong_is_told_and_never_the_best(monkeypatch):
    run, calls = attention_gpu.forward, itertools.count()

    def sometimes(*arguments, **options):
        number = next(calls)
        if number == 1:
            raise RuntimeError("out of resource: shared memory")
        out, lse = run(*arguments, **options)
        return (out + 1, lse) if number == 2 else (out, lse)

    monkeypatch.setattr(attention_gpu, "forward", sometimes)
    (record,) = searched(lambda call: 1.0, [("forward", 16, "float32")], 5)
    assert record["failed"] == ["out of resource: shared memory", "wrong"]
    assert record["best"] == record["present"]


def test_candidates_are_bounded_and_nearest_first():
    present = Config(64, 32, 8, 2)
    found = tune.candidates(present)
    assert found[0] == present and len(set(found)) == len(found) < 80
    assert sum(a != b for a, b in zip(vars(found[1]).values(), vars(present).values())) == 1


def test_entries_are_the_tables():
    record = {"operation": "keys", "D": 64, "dtype": "bfloat16", "best": vars(Config(32, 64, 8, 2))}
    (line,) = tune.entries([record])
    assert eval(f"{{{line}}}") == {("keys", True): {64: Config(32, 64, 8, 2)}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it would search")
def test_the_command_needs_a_gpu(capsys):
    assert cli.main(["tune"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
