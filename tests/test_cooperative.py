"""Programs that wait for each other, all at once under many schedules: faults planted in a small kernel, our scans, and
faults planted in these."""

import itertools
from collections import Counter

import pytest
import torch
import triton
import triton.language as tl
from agreement import assert_agree
from cooperative import POLICIES, DataRace, Deadlock, OutOfBounds, ScheduleError, cooperative
from scan_problem import Problem
from seqkernels.kernels.gpu import regimes, scan_backward, scan_forward

from seqkernels.ops import scan_gpu

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with CUDA, the tests run Triton's kernels compiled and not in its interpreter"
)

SCHEDULES = list(zip(range(20), itertools.cycle(POLICIES)))
PROGRAMS, BLOCK, STEPS = 4, 8, 6


@triton.jit
def ring(x, y, slots, counter, STEPS, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
         FAULT: tl.constexpr):  # fmt: skip
    """Each program has a block of x (PROGRAMS BLOCK). STEPS times, x becomes x / 2 + the sum of all blocks / 100, which
    the programs exchange through SLOTS slots, a step in each; then y is x."""
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    everyone = tl.arange(0, PROGRAMS * BLOCK)
    values = tl.load(x + mine)
    for step in range(STEPS):
        slot = slots + step % SLOTS * PROGRAMS * BLOCK
        tl.store(slot + mine + (1 << 20 if FAULT == "out of bounds" else 0), values)
        count = (step + 1) * PROGRAMS
        if FAULT == "count too low":
            count -= 1
        if FAULT == "count too high":
            count += 1
        if FAULT != "no barrier":
            tl.debug_barrier()
            tl.atomic_add(counter, 1, sem="relaxed" if FAULT == "relaxed arrival" else "release", scope="gpu")
            if FAULT == "volatile wait":
                while tl.load(counter, volatile=True) < count:
                    pass
            else:
                sem: tl.constexpr = "relaxed" if FAULT == "relaxed wait" else "acquire"
                while tl.atomic_add(counter, 0, sem=sem, scope="gpu") < count:
                    pass
        values = values / 2 + tl.sum(tl.load(slot + everyone), axis=0) / 100
    tl.store(y + mine, values)


def outcomes(run, expected):
    """How many of the schedules end how: with an exception of which type, or in "right" or "wrong" tensors, which `run`
    returns."""
    counts = Counter()
    for seed, policy in SCHEDULES:
        try:
            with cooperative(seed, policy):
                results = run()
        except ScheduleError as error:
            counts[type(error)] += 1
        else:
            counts["right" if all(map(torch.allclose, results, expected)) else "wrong"] += 1
    return counts


def assert_caught(counts, error):
    """Under every schedule, and by the error under most. In some, a race is none, as the late program's own wait orders
    it after what another has done too early. Then the values are wrong."""
    assert counts.keys() <= {error, "wrong"} and counts[error] > len(SCHEDULES) / 2, counts


def ring_outcomes(slots, fault=None):
    x = torch.randn(PROGRAMS * BLOCK)
    expected = x
    for _ in range(STEPS):
        expected = expected / 2 + expected.sum() / 100

    def run():
        y, memory, counter = torch.empty_like(x), x.new_empty(slots, len(x)), torch.zeros(1, dtype=torch.int32)
        ring[(PROGRAMS,)](x, y, memory, counter, STEPS, PROGRAMS, BLOCK, SLOTS=slots, FAULT=fault)
        return [y]

    return outcomes(run, [expected])


@pytest.mark.parametrize("slots", [2, 3, 8])
def test_a_correct_ring_raises_nothing(slots):
    assert ring_outcomes(slots) == {"right": len(SCHEDULES)}


FAULTS = {
    "no barrier": DataRace,
    "relaxed arrival": DataRace,
    "relaxed wait": DataRace,
    "volatile wait": DataRace,
    "count too low": DataRace,
    "count too high": Deadlock,
    "out of bounds": OutOfBounds,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_ring_is_caught_under_every_schedule(fault):
    assert ring_outcomes(2, fault) == {FAULTS[fault]: len(SCHEDULES)}


def test_a_slot_that_is_used_again_too_early_is_caught_under_every_schedule():
    assert_caught(ring_outcomes(slots=1), DataRace)


# Three blocks of units, in two chunks.
H = 40


def plan(regime):
    return regimes.Plan(regime, units=16, rows=16, chunk=32, warps=4)


waiting = pytest.mark.parametrize("regime", ["grid", "streamed"])


@waiting
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_scans_whose_programs_wait_agree_with_torch(cell, regime):
    problem = Problem(cell, (3, 3, 5, H, 2, True, True), torch.float32)
    for seed, policy in SCHEDULES[:3]:
        with cooperative(seed, policy):
            ours = problem.ours(driver=scan_gpu, plan=plan(regime))
        assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.float32))


def test_rows_in_blocks_wait_for_their_own():
    problem = Problem("rnn_tanh", (3, 20, 5, H, 1, False, False), torch.float32)
    with cooperative():
        ours = problem.ours(driver=scan_gpu, plan=plan("streamed"))
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.float32))


@triton.jit
def arrive_relaxed(counter):
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="relaxed", scope="gpu")


@triton.jit
def arrive_twice(counter):
    tl.debug_barrier()
    tl.atomic_add(counter, 2, sem="release", scope="gpu")


@triton.jit
def wait_relaxed(counter, count):
    while tl.atomic_add(counter, 0, sem="relaxed", scope="gpu") < count:
        pass


@triton.jit
def wait_not_at_all(counter, count):
    pass


@triton.jit
def wait_for_one_less(counter, count):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < count - 1:
        pass


@triton.jit
def wait_for_one_more(counter, count):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < count + 1:
        pass


SCAN_FAULTS = {
    "relaxed arrival": ("arrive", arrive_relaxed, DataRace),
    "counted twice": ("arrive", arrive_twice, DataRace),
    "relaxed wait": ("wait_for", wait_relaxed, DataRace),
    "no wait": ("wait_for", wait_not_at_all, DataRace),
    "count too low": ("wait_for", wait_for_one_less, DataRace),
    "count too high": ("wait_for", wait_for_one_more, Deadlock),
}


@waiting
@pytest.mark.parametrize("fault", SCAN_FAULTS)
@pytest.mark.parametrize("module", [scan_forward, scan_backward], ids=["forward", "backward"])
def test_a_fault_in_the_scans_is_caught_under_every_schedule(monkeypatch, module, fault, regime):
    problem = Problem("rnn_tanh", (3, 1, 5, H, 1, True, True), torch.float32)

    def forward():
        arguments = ("rnn_tanh", problem.x, problem.h, None, problem.weights, True, True)
        y, h_n, _, states, gates = scan_gpu.forward(*arguments, plan=plan(regime))
        return y, h_n, states, gates

    with cooperative():
        kept = forward()[2:]

    def backward():
        saved = (problem.x, problem.h, None, problem.weights, *kept, True)
        upstream = (problem.dy, problem.dh, None)
        dx, dh, _, dweights = scan_gpu.backward("rnn_tanh", *upstream, *saved, True, True, plan=plan(regime))
        return dx, dh, *dweights

    run = forward if module is scan_forward else backward
    with cooperative():
        expected = run()
    name, faulty, error = SCAN_FAULTS[fault]
    monkeypatch.setattr(module, name, faulty)
    assert_caught(outcomes(run, expected), error)
