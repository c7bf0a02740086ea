"""Threads for kernels that release the GIL. Their number follows `torch.get_num_threads()`."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch

_lock = Lock()
_pool = None


def run(tasks):
    """Call every task; return when all are done. At most `torch.get_num_threads()` of them run at once."""
    threads = min(len(tasks), torch.get_num_threads())
    if threads <= 1:
        for task in tasks:
            task()
        return
    shares = [tasks[i::threads] for i in range(threads)]
    futures = [_executor().submit(_run_all, share) for share in shares[1:]]
    try:
        _run_all(shares[0])
    finally:
        for future in futures:
            future.result()


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
