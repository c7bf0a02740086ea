"""Threads for kernels: every call once; errors and interrupts leave no task behind, forks and endings are survived."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit
from seqkernels.kernels.cpu.atomics import fetch_add
from seqkernels.kernels.cpu.memory import put

from seqkernels.ops import threads


@pytest.fixture(autouse=True)
def two_threads(one_thread):
    torch.set_num_threads(2)


@pytest.fixture
def in_pool(monkeypatch):
    """Without OpenMP: then threads.run takes any function."""
    monkeypatch.setattr(threads, "_openmp", lambda: None)


def adders(counts):
    """A kernel that adds one to an integer, and the calls that do so to each of `counts`."""
    return _add, [(place,) for place in range(counts.ctypes.data, counts.ctypes.data + counts.nbytes, counts.itemsize)]


@njit("(intp,)", nogil=True)
def _add(place):
    fetch_add(place, 1)


@pytest.mark.parametrize("number", [1, 2, 20])
def test_every_call_is_made_once(number):
    counts = np.zeros(number, np.int64)
    threads.run(*adders(counts))
    assert (counts == 1).all()


def test_a_leader_and_its_members_run():
    counts = np.zeros(3, np.int64)
    kernel, (leader, *members) = adders(counts)
    threads.run_led(kernel, leader, members, lambda: None)
    assert (counts == 1).all()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_region_passes_every_argument(count):
    names = [f"a{i}" for i in range(count)]
    body = "".join(f"    put(a0 + {8 * (1 + i)}, {name})\n" for i, name in enumerate(names))
    scope = {"put": put}
    exec(f"def write({', '.join(names)}):\n{body}", scope)
    kernel = njit(f"({'intp, ' * count})", nogil=True)(scope["write"])
    seen = np.zeros((4, 1 + count), np.int64)
    calls = [(row.ctypes.data, *range(100 * i, 100 * i + count - 1)) for i, row in enumerate(seen)]
    threads.run(kernel, calls)
    assert (seen[:, 1:] == calls).all()


def test_the_pool_makes_every_call_once(in_pool):
    counts = np.zeros(20, np.int64)
    threads.run(*adders(counts))
    assert (counts == 1).all()


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_an_error_is_raised_when_no_task_runs_any_more(failing, in_pool):
    running = [0, 0]  # started, ended

    def task(index):
        running[0] += 1
        time.sleep(0.02 * index)
        running[1] += 1
        if index == failing:
            raise ValueError(index)

    with pytest.raises(ValueError):
        threads.run(task, [(i,) for i in range(4)])
    assert running[0] == running[1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts are POSIX signals here")
def test_an_interrupt_waits_for_the_workers(in_pool):
    ended, both = threading.Event(), threading.Barrier(2)

    def slow():
        both.wait()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)
            ended.set()

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run(slow, [(), ()])
        assert ended.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_makes_its_own_pool():
    counts = np.zeros(4, np.int64)
    threads.run(*adders(counts))
    child = os.fork()
    if child == 0:
        threads.run(*adders(counts))
        os._exit(int(counts.sum()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8


def test_work_at_the_end_of_the_interpreter_is_done():
    code = """
import atexit, numpy, torch
from seqkernels.ops import threads
from test_threads import adders
torch.set_num_threads(2)
counts = numpy.zeros(4, numpy.int64)
atexit.register(lambda: (threads.run(*adders(counts)), print(counts.sum())))
threads.run(*adders(counts))
"""
    run = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    done = run([sys.executable, "-c", code])
    assert done.stdout.strip() == "8", done.stderr
