"""Scratch memory that is kept from call to call: fresh memory costs a page fault every 4 KiB."""

import threading

import torch

_KEPT_BYTES = 64 << 20
_local = threading.local()


def workspace(elements, dtype):
    """Scratch of this thread for so many elements, kept for its next call unless it is large."""
    count = elements * dtype.itemsize
    kept = getattr(_local, "kept", None)
    if kept is None or kept.numel() < count:
        kept = torch.empty(count, dtype=torch.uint8)
        if count <= _KEPT_BYTES:
            _local.kept = kept
    return kept
