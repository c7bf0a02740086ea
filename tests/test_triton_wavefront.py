"""Layers as a wavefront, against torch.nn in float64, on a GPU or in Triton's interpreter; and under random orders of
what streams may do at the same time."""

import dataclasses

import pytest
import torch
from agreement import assert_agree
from cooperative import cooperative
from device import DEVICE, INTERPRETED, there
from layers_problem import LayersProblem
from scan_problem import Problem, assert_same
from seqkernels.kernels.gpu import regimes, wavefront_plan
from simulated_streams import World

from seqkernels.ops import tasks
from seqkernels.ops.scan_launch_gpu import Backward, Forward

# T, B, I, H, batch_first, bias
SHAPES = {
    "odd": (5, 3, 7, 17, True, True),
    "row": (5, 1, 6, 17, False, True),
    "no bias": (4, 3, 7, 17, False, False),
}
# One after another, as the interpreter runs programs, only one block of units may wait.
UNITS = {"whole": 32, **dict.fromkeys(("grid", "streamed"), 32 if INTERPRETED else 16), "stepwise": 16}


def plan(regime):
    return regimes.Plan(regime, UNITS[regime], 16, 32, 4)


def assert_right(problem, *enters, dtype=torch.float32, **options):
    exact, close = (problem.by_reference(d, *enters) for d in (torch.float64, dtype))
    assert_agree(problem.ours(*enters, **options), exact, close)


CASES = [
    ("lstm", 2, "whole", "odd"),
    ("lstm", 3, "grid", "no bias"),
    ("lstm", 2, "grid", "row"),
    ("gru", 2, "grid", "odd"),
    ("gru", 3, "whole", "row"),
    ("rnn_tanh", 3, "whole", "no bias"),
    ("rnn_tanh", 2, "streamed", "odd"),
]


@pytest.mark.parametrize("cell, L, regime, shape", CASES)
def test_agrees_with_torch(cell, L, regime, shape):
    shape = SHAPES[shape]
    assert_right(LayersProblem(cell, L, shape, torch.float32), steps=2, plan=plan(regime))


def test_agrees_with_torch_in_half_precision():
    problem = LayersProblem("lstm", 2, SHAPES["odd"], torch.float16)
    assert_right(problem, dtype=torch.float16, steps=2, plan=plan("whole"))


@pytest.mark.parametrize("dy", [True, False], ids=["y only", "states only"])
def test_gradients_that_enter_by_one_output(dy):
    assert_right(LayersProblem("lstm", 2, SHAPES["odd"], torch.float32), dy, not dy, steps=3, plan=plan("whole"))


@pytest.mark.parametrize("regime", UNITS)
@pytest.mark.parametrize("cell, B", [("lstm", 3), ("gru", 1)])
def test_launches_of_some_steps_are_a_launch_of_all(cell, B, regime):
    """To the bit, but for the backward of "whole", where what is carried between launches is a sum of more."""
    T = 4
    problem = Problem(cell, (T, B, 7, 17, 2, False, True), torch.float32)
    x, h, c, weights, *upstream = there(
        problem.x, problem.h, problem.c, problem.weights, problem.dy, problem.dh, problem.dc
    )

    def launched(steps):
        chunks = [(first, min(first + steps, T)) for first in range(0, T, steps)]
        forward = Forward(cell, x, h, c, weights, False, True, plan(regime))
        forward.project(0, T)
        for chunk in chunks:
            forward.launch(*chunk)
        *outputs, states, gates = forward.results()
        backward = Backward(cell, *upstream, x, h, c, weights, states, gates, True, plan(regime))
        for chunk in chunks:
            backward.launch(*chunk)
        backward.to_inputs(0, T)
        gradients = [backward.dx, *backward.to_states(), *backward.to_weights()]
        return [[t for t in made if t is not None] for made in ([*outputs, states, gates], gradients)]

    at_once = launched(T)
    for steps in (1, 3):
        outputs, gradients = launched(steps)
        to_the_bit = outputs if regime == "whole" else outputs + gradients
        for value, expected in zip(to_the_bit, at_once[0] + at_once[1]):
            assert_same(value, expected)
        torch.testing.assert_close(gradients, at_once[1], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not INTERPRETED, reason="with CUDA, Triton's kernels are not interpreted")
@pytest.mark.parametrize("cell, seed, policy", [("lstm", 1, "random"), ("gru", 2, "greedy")])
def test_programs_that_wait_for_each_other(cell, seed, policy):
    """Three blocks of units, in two chunks: what has been counted in a launch holds in the next one."""
    problem = LayersProblem(cell, 2, (3, 2, 5, 40, False, True), torch.float32)
    with cooperative(seed, policy):
        ours = problem.ours(steps=2, plan=regimes.Plan("grid", 16, 16, 32, 4))
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.float32))


SEEDS = range(5)
L = 3


@pytest.fixture
def directions():
    """Of three layers of three chunks, forward and backward: run -> a list of results, run as the tasks are listed."""
    problem = LayersProblem("rnn_tanh", L, (3, 2, 3, 4, False, True), torch.float32)
    options = {"steps": 1, "plan": plan("whole")}
    saved = problem.forward(True, **options)[1]
    return (
        lambda **run: problem.forward(True, **options, **run)[0][:2],
        lambda **run: [t for t in problem.backward(saved, **options, **run) if t is not None],
    )


def in_worlds(compute, change=lambda tasks: tasks):
    """For each seed the World, and whether the results are those of the tasks as they are listed, if they are changed
    first."""
    expected, found = compute(), []
    for world in map(World, SEEDS):
        results = compute(run=lambda tasks, device, world=world: world.run(change(tasks), device))
        found.append((world, all(map(torch.equal, results, expected))))
    return found


def test_every_order_that_streams_and_events_allow_is_right(directions):
    for compute in directions:
        worlds, right = zip(*in_worlds(compute))
        assert all(right)
        assert {(world.done[0], world.done[-1]) for world in worlds} == {("before", "after")}
        at_the_same_time = [world.done.index(2) < world.done.index(2 * L) for world in worlds]
        assert any(at_the_same_time), "the third layer has its first chunk before the first layer has its last"


FAULTS = {
    "nobody waits": lambda place, task: task._replace(after=()),
    "for the chunk before": lambda place, task: task._replace(after=tuple(p - L for p in task.after if p >= L)),
    "a stream for each chunk": lambda place, task: task._replace(stream=place),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_order_is_caught(directions, fault):
    def change(tasks):
        return [fault(place, task) for place, task in enumerate(tasks)]

    for compute in directions:
        assert not all(right for _, right in in_worlds(compute, change))


def test_a_missing_fork_or_join_is_caught(directions, monkeypatch):
    monkeypatch.setattr("simulated_streams.Stream.wait_stream", lambda self, other: None)
    firsts, lasts = zip(*((world.done[0], world.done[-1]) for world, _ in in_worlds(directions[0])))
    assert set(firsts) != {"before"} and set(lasts) != {"after"}


def test_the_current_stream_waits_for_what_ran_before_an_error():
    for seed in SEEDS:
        world = World(seed, failing=2)
        planned = [tasks.Task(stream, (), lambda: None) for stream in range(4)]
        with pytest.raises(RuntimeError, match="cannot be started"):
            world.note(planned, DEVICE)
        world.work()
        assert world.done[0] == "before" and world.done[-1] == "after" and sorted(world.done[1:-1]) == [0, 1]


PLAN = regimes.Plan("grid", 16, 16, 64, 4)


def test_the_rule():
    """An LSTM of 768 units on 132 processors: 48 programs a layer for up to 16 rows."""

    def steps(L=2, D=1, T=1000, B=16, regime="grid"):
        return wavefront_plan.chunk_for(dataclasses.replace(PLAN, regime=regime), L, D, T, B, 768, 132)

    assert steps() == 80 and steps(T=4096) == 256 and steps(T=128) == 64 and steps(T=129) == 80
    assert steps(regime="whole") == steps(regime="any that stays") == 80
    assert [steps(L=n) for n in (1, 2, 3)] == [0, 80, 0], "three layers do not fit"
    assert steps(B=17) == steps(D=2) == steps(T=127) == steps(regime="stepwise") == 0


@pytest.mark.parametrize("T", [128, 129, 191, 192, 1000, 1024, 1025, 5000])
def test_chunks_are_no_shorter_than_64_and_no_more_than_16(T):
    steps = wavefront_plan.chunk_for(PLAN, 2, 1, T, 1, 64, 132)
    assert steps >= 64 and steps % 16 == 0 and 2 <= -(-T // steps) <= 16


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: streams, and a graph of them")
def test_streams_and_a_graph_of_them_give_what_tasks_in_turn_give():
    problem = LayersProblem("lstm", 2, (256, 16, 64, 256, False, True), torch.bfloat16)
    for name in ("x", "h", "c", "weights", "dy", "dh", "dc"):
        setattr(problem, name, *there(getattr(problem, name)))

    def results(**options):
        outputs, saved = problem.forward(True, steps=64, **options)
        return *outputs, *problem.backward(saved, steps=64, **options)

    expected = results(run=lambda planned, device: [task.run() for task in planned])
    torch.testing.assert_close(results(), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results()
    graph.replay()
    torch.testing.assert_close(captured, expected)
