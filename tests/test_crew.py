"""Threads that take steps together: every share once, whoever comes late or stays away."""

import threading
import time

import numpy as np
import pytest
from numba import njit
from seqkernels.kernels.cpu import crew
from seqkernels.kernels.cpu.layout import layout
from seqkernels.kernels.cpu.memory import integers, put

from seqkernels.ops import crews

join, meet = crew.functions()
MOMENT = 2_000_000_000


@njit(nogil=True)
def work(memory, leads, steps, units, counts, seen):
    """Every unit of a step reads the sum of all units of the step before, and adds one to its own count."""
    member, size = join(memory, leads)
    if leads:
        put(seen, size)
    step = 0
    while size > 0 and step < steps:
        total = 0
        for unit in range(units):
            total += integers(counts + 8 * (units * (step % 2) + unit), 1)[0]
        if total != units * step:
            return -1
        for unit in range(units * member // size, units * (member + 1) // size):
            put(counts + 8 * (units * ((step + 1) % 2) + unit), step + 1)
        size = meet(memory, member, size, step)
        step += 1
    return step


def crew_of(*words):
    memory = np.zeros((crew.WORDS, crew.WORD // 8), np.int64)
    memory[: len(words), 0] = words
    return memory


def start(members, steps=2000, units=7, moment=MOMENT, patience=MOMENT, late=0.0):
    """Steps that were taken by the leader and by each member, the size of the crew, and the final counts."""
    memory = crew_of(members + 1, moment, patience)
    counts, seen = np.zeros((2, units), np.int64), np.zeros(1, np.int64)
    rest = (steps, units, counts.ctypes.data, seen.ctypes.data)
    taken = {}

    def member(index):
        time.sleep(late)
        taken[index] = work(memory.ctypes.data, 0, *rest)

    threads = [threading.Thread(target=member, args=(i,)) for i in range(members)]
    for thread in threads:
        thread.start()
    led = work(memory.ctypes.data, 1, *rest)
    for thread in threads:
        thread.join()
    return led, sorted(taken.values()), seen[0], counts[steps % 2]


@pytest.fixture(scope="module", autouse=True)
def compiled():
    start(0, steps=1)


@pytest.mark.parametrize("members", (0, 1, 2, 5))
def test_every_share_is_taken_once(members):
    led, taken, size, counts = start(members, steps=2000 if members < 3 else 200)
    assert led == (2000 if members < 3 else 200)
    assert taken == [led] * members
    assert size == members + 1
    assert (counts == led).all()


def test_who_comes_late_is_not_waited_for():
    led, taken, size, counts = start(2, moment=1, late=0.2)
    assert (led, taken, size) == (2000, [0, 0], 1)
    assert (counts == 2000).all()


def test_a_member_that_is_taken_away_is_dismissed():
    """More members than cores, and no patience: the leader goes on alone, and no share is lost."""
    for _ in range(20):
        led, taken, _, counts = start(6, steps=300, patience=1)
        assert led == 300 and (counts == 300).all()
        assert min(taken) >= 0
        if max(taken) < 300:
            return
    raise AssertionError("no member was ever late")


def test_many_crews_at_once():
    results = []
    crews = [threading.Thread(target=lambda: results.append(start(1, steps=100))) for _ in range(16)]
    for thread in crews:
        thread.start()
    for thread in crews:
        thread.join()
    assert len(results) == 16
    assert all(led == 100 and (counts == 100).all() for led, _, _, counts in results)


def test_a_word_of_dismissal_ends_a_crew_without_a_leader():
    memory, ended = crew_of(2, 0, 0), []
    rest = (0, 5, 1, np.zeros(2, np.int64).ctypes.data, 0)
    thread = threading.Thread(target=lambda: ended.append(work(memory.ctypes.data, *rest)))
    thread.start()
    time.sleep(0.05)
    assert not ended
    memory[crew.GO, 0] = crew.DISMISSED
    thread.join(10)
    assert ended == [0]


def test_long_work_waits_longer_and_no_work_for_long():
    """100 operations a nanosecond: at most a fiftieth of the work is spent on waiting for who may not come."""
    shape = layout("lstm", 4, False)
    (moment, patience), (longer, more) = (crews.waits(shape, 64, operations) for operations in (0, 10**10))
    assert longer - moment == more - patience == 2_000_000
    assert patience > moment > 0
