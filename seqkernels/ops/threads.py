"""Threads for kernels. Their number follows `torch.get_num_threads()`.

Where torch itself runs on GNU OpenMP, so do they: on the same threads, which wait for work in a loop for a while after
each operation of torch's, and would keep others from their cores. They run compiled code alone
(kernels/cpu/region.py), so that none of them waits for the interpreter. A child of a fork has none of them, and OpenMP
would wait for them: there, and where there is no such OpenMP, a pool of Python's is used.
"""

import ctypes
import os
from array import array
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import chain
from threading import Lock

import torch

from .compiled import compiled

_lock = Lock()
_pool = None
_forked = False


def run(kernel, calls):
    """Call the kernel with each of some tuples of integers; return when all have been made. At most
    `torch.get_num_threads()` run at once.

    Kernels write to memory that the caller may free when it is told of an exception, so that an interrupt is raised
    only when none runs any more.
    """
    threads = min(len(calls), torch.get_num_threads())
    if threads <= 1:
        for call in calls:
            kernel(*call)
    elif _openmp() is not None and not _forked:
        _run_region(kernel, calls, threads)
    else:
        _run_in_pool(kernel, calls, threads)


def run_led(kernel, leader, members, dismiss):
    """Call the kernel with leader, a tuple of integers, and with members beside it, each in a thread of its own; return
    when none runs any more. Those that come to run after the leader find that out themselves; dismiss is called if it
    is interrupted, before that is raised."""
    if _openmp() is not None and not _forked:
        _run_region(kernel, [leader, *members], 1 + len(members))
        return
    futures = []
    try:
        try:
            for member in members:
                futures.append(_executor().submit(kernel, *member))
        except RuntimeError:  # the interpreter is ending and takes no more work
            pass
        kernel(*leader)
    except BaseException:  # not else: a member may have the leader's last word still to read, and work to do
        dismiss()
        raise
    finally:
        _wait([future for future in futures if not future.cancel()])


@cache
def _openmp():
    """GNU OpenMP's entry to a parallel region, if torch runs on it, or None."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    enter = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if enter is not None:
        enter.argtypes, enter.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return enter


@cache
def _region(count):
    """(the address of the function that a region's threads run for kernels of `count` arguments, its header's size)."""
    return compiled().address(compiled().kernel("region", count=count)), compiled().region_header


def _run_region(kernel, calls, threads):
    """The calls in a parallel region, whose threads take one after another in their order."""
    entry, header = _region(len(calls[0]))
    head = (0, len(calls), compiled().address(kernel), *[0] * (header - 3))
    memory = array("q", [*head, *chain.from_iterable(calls)])  # from an iterator it takes five times as long
    _openmp()(entry, memory.buffer_info()[0], threads, 0)


def _run_in_pool(kernel, calls, threads):
    shares, futures = [calls[i::threads] for i in range(threads)], []
    try:
        for share in shares[1:]:
            futures.append(_submit(kernel, share))
        _run_all(kernel, shares[0])
    finally:
        _wait(futures)
    for future in futures:
        future.result()


def _submit(kernel, share):
    """A future of the share; done at once by this thread where the interpreter is ending and takes no more work."""
    try:
        return _executor().submit(_run_all, kernel, share)
    except RuntimeError:
        future = Future()
        future.set_result(_run_all(kernel, share))
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


def _run_all(kernel, calls):
    for call in calls:
        kernel(*call)


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
