"""The thread pool: errors and interrupts leave no task behind, forks and endings are survived."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from seqkernels.ops import threads


@pytest.fixture(autouse=True)
def two_threads(one_thread):
    torch.set_num_threads(2)


def test_every_task_runs_once():
    ran = []
    threads.run([lambda i=i: ran.append(i) for i in range(20)])
    assert sorted(ran) == list(range(20))


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_an_error_is_raised_when_no_task_runs_any_more(failing):
    running = [0, 0]  # started, ended

    def task(index):
        running[0] += 1
        time.sleep(0.02 * index)
        running[1] += 1
        if index == failing:
            raise ValueError(index)

    with pytest.raises(ValueError):
        threads.run([lambda i=i: task(i) for i in range(4)])
    assert running[0] == running[1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts are POSIX signals here")
def test_an_interrupt_waits_for_the_workers():
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
            threads.run([slow, slow])
        assert ended.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_makes_its_own_pool():
    threads.run([lambda: None] * 4)
    child = os.fork()
    if child == 0:
        ran = []
        threads.run([lambda i=i: ran.append(i) for i in range(4)])
        os._exit(len(ran))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_work_at_the_end_of_the_interpreter_is_done():
    code = """
import atexit, torch
from seqkernels.ops import threads
torch.set_num_threads(2)
ran = []
atexit.register(lambda: (threads.run([lambda: ran.append(0)] * 4), print(len(ran))))
threads.run([lambda: None] * 4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4", done.stderr
