"""Memory for kernels. Fresh memory costs a page fault every 4 KiB, a good part of a long training step, so scratch and
what a forward saves for its backward are used again, and large outputs are put on huge pages."""

import ctypes
import math
import sys
import threading
from functools import cache

import numpy as np
import torch

_SCRATCH_BYTES = 64 << 20  # the most that a thread keeps
_BLOCK_BYTES = 4 << 20  # from here on memory is leased
_IDLE_BYTES = 512 << 20  # the most that waits for its next use
_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_local = threading.local()
_idle = {}  # id -> block, of those that wait, the oldest first: whoever pops one has it


def workspace(elements, dtype):
    """Scratch of this thread for so many elements, kept for its next call unless it is large."""
    count = elements * dtype.itemsize
    kept = getattr(_local, "kept", None)
    if kept is None or kept.numel() < count:
        kept = on_huge_pages(torch.empty(count, dtype=torch.uint8))
        if count <= _SCRATCH_BYTES:
            _local.kept = kept
    return kept


def leased(shape, dtype):
    """A tensor of this shape whose memory, if it is large, is used again once the tensor is gone."""
    count = math.prod(shape) * dtype.itemsize
    if count < _BLOCK_BYTES:
        return torch.empty(shape, dtype=dtype)
    lease = np.ndarray.__new__(_Lease, count, np.uint8, _block(count))
    tensor = torch.frombuffer(lease, dtype=dtype)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        tensor.fill_(math.nan)  # as torch.empty does
    return tensor.view(shape)


class _Lease(np.ndarray):
    """The memory of a leased tensor, which holds the one reference to it."""

    def __del__(self, idle=_idle, most=_IDLE_BYTES):
        idle[id(self.base)] = self.base
        waiting = list(idle.values())
        while sum(block.nbytes for block in waiting) > most:
            idle.pop(id(waiting.pop(0)), None)


def _block(count):
    """The smallest idle block that has room for `count` bytes without wasting half of itself, or a new one."""
    fitting = [block for block in list(_idle.values()) if count <= block.nbytes <= 2 * count]
    for block in sorted(fitting, key=lambda block: block.nbytes):
        if _idle.pop(id(block), None) is not None:  # else another thread took it
            return block
    return on_huge_pages(torch.empty(count, dtype=torch.uint8)).numpy()


def on_huge_pages(tensor):
    """The tensor itself; where it is large, the system is advised to back new memory with huge pages (Linux)."""
    count = tensor.numel() * tensor.element_size()
    if count >= 4 * _HUGE_PAGE and _advise() is not None:
        first = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        last = (tensor.data_ptr() + count) // _HUGE_PAGE * _HUGE_PAGE
        _advise()(first, last - first, _MADV_HUGEPAGE)  # advice: a system that does not take it loses nothing
    return tensor


@cache
def _advise():
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
