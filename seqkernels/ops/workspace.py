"""Memory for kernels: fresh memory costs a page fault every 4 KiB, so scratch is kept and large outputs get huge pages."""

import ctypes
import sys
import threading
from functools import cache

import torch

_KEPT_BYTES = 64 << 20
_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_local = threading.local()


def workspace(elements, dtype):
    """Scratch of this thread for so many elements, kept for its next call unless it is large."""
    count = elements * dtype.itemsize
    kept = getattr(_local, "kept", None)
    if kept is None or kept.numel() < count:
        kept = on_huge_pages(torch.empty(count, dtype=torch.uint8))
        if count <= _KEPT_BYTES:
            _local.kept = kept
    return kept


def on_huge_pages(tensor):
    """The tensor itself; if it is large and its memory new, the system is advised to back it with huge pages (Linux)."""
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
