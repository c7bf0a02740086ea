"""Many threads and many processes at once: no call waits for ever, and none returns another bit than it does alone."""

import faulthandler
import multiprocessing
import os
import random
import sys
import threading
import time

import pytest
import stress_calls
import torch
from stress_calls import FORMS
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

THREADS, WORKERS = 32, 8
SHORT, LONG = 100, 10_000  # calls of each
SECONDS = {SHORT: 300, LONG: 7200}  # after which something hangs
SMALL = torch.full((1 << 17,), 1e-40)  # denormal
FD = 2  # standard error, which pytest captures

amounts = pytest.mark.parametrize("calls", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(scope="module")
def alone():
    """(name -> maker of a user's call, name -> the bits of its result), made by one thread before there are others."""
    torch.set_num_threads(1)
    makers = stress_calls.prepare()
    return makers, {name: bits(own()()) for name, own in makers.items()}


@pytest.fixture(autouse=True)
def frequent_switches():
    """Threads take turns between any two lines."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def bits(result):
    """The tensors of a result, as bytes."""
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    return [leaf.detach().reshape(-1).view(torch.uint8) for leaf in leaves]


def assert_same(found, expected, name):
    """The same bits as before, in every tensor."""
    assert len(found) == len(expected), name
    for place, (mine, first) in enumerate(zip(found, expected)):
        assert torch.equal(mine, first), f"{name}: tensor {place}, {(mine != first).sum()} of {mine.numel()} bytes"


def flush_denormals(threads):
    """Whether so many threads of OpenMP, the caller's own first, flush denormals; a list where they do not agree."""
    torch.set_num_threads(threads)
    modes = (SMALL[: 1 if threads == 1 else None] * 0.5 == 0).unique().tolist()
    return modes[0] if len(modes) == 1 else modes


def work(alone, seed, calls, go_on=lambda: True, forked=False):
    """So many calls drawn at random, each with 1 or 2 threads, each compared with its result when it was alone.

    Every fourth user flushes denormals, and the others do not; kernels must leave that as it is. A forked user has one
    thread where torch would share an operation of its own out.
    """
    makers, expected = alone
    generator, own, flush = random.Random(seed), {name: maker() for name, maker in makers.items()}, seed % 4 == 0
    torch.set_flush_denormal(flush)
    for _ in range(calls):
        if not go_on():
            return
        (name,) = generator.choices(list(FORMS), [form.weight for form in FORMS.values()])
        threads = generator.choice((1, 2))
        torch.set_num_threads(threads if FORMS[name].small or not forked else 1)
        result = own[name]()
        torch.set_num_threads(1)  # what follows may be large
        assert_same(bits(result), expected[name], name)
        assert flush_denormals(1) is flush, f"{name} changed the mode"
    assert forked or flush_denormals(2) is flush, "a call changed the mode of another thread"


class Crowd:
    """Users in threads of their own, until all are done, one fails, or the block of a `with` ends."""

    def __init__(self, alone, users, calls):
        self._errors, self._stopped, gate = [], False, threading.Barrier(users)

        def run(seed):
            try:
                gate.wait()
                work(alone, seed, calls, lambda: not (self._errors or self._stopped))
            except BaseException as error:
                self._errors.append(error)

        self._threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(users)]
        for thread in self._threads:
            thread.start()

    def join(self, seconds):
        """Raises what a user raised; fails, with the stacks of all threads, where one is still there by then."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            faulthandler.dump_traceback(FD, all_threads=True)
            pytest.fail(f"not done after {seconds} seconds")
        if self._errors:
            raise self._errors[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopped = True
        self.join(SECONDS[SHORT])


def watch(seconds):
    """In a child: where it is not done by then, the stacks of its threads, and its end with status 1."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=FD)


@amounts
def test_threads(alone, calls):
    Crowd(alone, THREADS, calls).join(SECONDS[calls])


def child(alone, seed, calls):
    watch(SECONDS[calls])
    work(alone, seed, calls, forked=True)
    faulthandler.cancel_dump_traceback_later()


def use_both_threads(alone):
    """Of OpenMP, by this thread: a fork does not take the other one along."""
    torch.set_num_threads(2)
    for name, maker in alone[0].items():
        assert_same(bits(maker()()), alone[1][name], name)


@forks
@amounts
def test_forked_processes(alone, calls):
    """Of a parent whose threads are at work."""
    context = multiprocessing.get_context("fork")
    use_both_threads(alone)
    with Crowd(alone, 4, sys.maxsize):
        workers = [context.Process(target=child, args=(alone, seed, calls)) for seed in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SECONDS[calls] + 60)
    assert [worker.exitcode for worker in workers] == [0] * WORKERS


class Calls(Dataset):
    """An item is what a form returns in the process that makes it."""

    def __init__(self, alone, length):
        self._makers, self._length = alone[0], length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        name = list(FORMS)[index % len(FORMS)]
        result = bits(self._makers[name]()())
        assert flush_denormals(1) is False, f"{name} changed the mode"
        return name, result


@forks
@amounts
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes")  # more than there are cores
def test_workers_of_a_data_loader(alone, calls):
    """Of a parent that goes on calling, and whose threads are at work."""
    makers, expected = alone
    items, seconds = Calls(alone, calls * WORKERS // 8), SECONDS[calls]
    loader = DataLoader(
        items,
        batch_size=None,
        num_workers=WORKERS,
        multiprocessing_context="fork",
        timeout=seconds,
        worker_init_fn=lambda _: watch(seconds),
    )
    use_both_threads(alone)
    with Crowd(alone, 4, sys.maxsize):
        for name, result in loader:
            assert_same(result, expected[name], name)
            assert_same(bits(makers[name]()()), expected[name], name)
