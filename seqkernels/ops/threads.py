"""Threads for kernels that release the GIL. Their number follows `torch.get_num_threads()`."""

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock

import torch

_lock = Lock()
_pool = None


def run(tasks):
    """Call every task; return when all are done. At most `torch.get_num_threads()` of them run at once.

    Tasks write to memory that the caller may free when it is told of an exception, so that an exception, an interrupt
    included, is raised only when no task runs any more.
    """
    threads = min(len(tasks), torch.get_num_threads())
    if threads <= 1:
        _run_all(tasks)
        return
    shares, futures = [tasks[i::threads] for i in range(threads)], []
    try:
        for share in shares[1:]:
            futures.append(_submit(share))
        _run_all(shares[0])
    finally:
        _wait(futures)
    for future in futures:
        future.result()


def run_led(leader, members, dismiss):
    """Call leader here and members beside it, and return when no task runs any more. Members that have not started
    when it is done are not started; dismiss is called then, and before anything is raised."""
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
    """The threads of a pool do not survive a fork."""
    global _lock, _pool
    _lock, _pool = Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
