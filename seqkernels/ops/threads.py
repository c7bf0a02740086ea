"""Threads for kernels that release the GIL. Their number follows `torch.get_num_threads()`.

Where torch itself runs on GNU OpenMP, so do they: on the same threads, which wait for work in a loop for a while after
each operation of torch's, and would keep others from their cores. A child of a fork has none of them, and OpenMP would
wait for them: there, and where there is no such OpenMP, a pool of our own is used.
"""

import ctypes
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import count
from threading import Lock

import torch

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_lock = Lock()
_pool = None
_forked = False


def run(tasks):
    """Call every task; return when all are done. At most `torch.get_num_threads()` of them run at once.

    Tasks write to memory that the caller may free when it is told of an exception, so that an exception, an interrupt
    included, is raised only when no task runs any more.
    """
    threads = min(len(tasks), torch.get_num_threads())
    if threads <= 1:
        _run_all(tasks)
    elif _openmp() is not None and not _forked:
        _run_region(tasks, threads)
    else:
        _run_in_pool(tasks, threads)


def run_led(leader, members, dismiss):
    """Call leader and the members beside it, and return when none of them runs any more. Those that come to run after
    the leader find that out themselves; dismiss is called before anything is raised."""
    if _openmp() is not None and not _forked:
        _run_region([leader, *members], 1 + len(members), dismiss)
        return
    futures = []
    try:
        try:
            for member in members:
                futures.append(_executor().submit(member))
        except RuntimeError:  # the interpreter is ending and takes no more work
            pass
        leader()
    finally:
        dismiss()
        _wait([future for future in futures if not future.cancel()])


@cache
def _openmp():
    """GNU OpenMP's entry to a parallel region, if torch runs on it, or None."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    enter = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if enter is not None:
        enter.argtypes, enter.restype = (_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return enter


def _run_region(tasks, threads, dismiss=lambda: None):
    """The tasks in a parallel region, whose threads take one after another in their order."""
    places, errors = count(), []

    def region(_):
        try:
            while (place := next(places)) < len(tasks):
                tasks[place]()
        except BaseException as error:
            errors.append(error)
            dismiss()

    _openmp()(_Region(region), None, threads, 0)
    if errors:
        raise errors[0]


def _run_in_pool(tasks, threads):
    shares, futures = [tasks[i::threads] for i in range(threads)], []
    try:
        for share in shares[1:]:
            futures.append(_submit(share))
        _run_all(shares[0])
    finally:
        _wait(futures)
    for future in futures:
        future.result()


def _submit(share):
    """A future of the share; done at once by this thread where the interpreter is ending and takes no more work."""
    try:
        return _executor().submit(_run_all, share)
    except RuntimeError:
        future = Future()
        future.set_result(_run_all(share))
        return future


def _wait(futures):
    """Until all are done; what interrupts the waiting is raised after it."""
    interrupt = None
    while True:
        try:
            wait(futures)
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _run_all(tasks):
    for task in tasks:
        task()


def _executor():
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="seqkernels")
        return _pool


def _after_fork():
    """Threads do not survive a fork."""
    global _lock, _pool, _forked
    _lock, _pool, _forked = Lock(), None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
