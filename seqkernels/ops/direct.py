"""The short path of plain calls that need no gradient: past the dispatcher to the drivers, with cached packed
weights."""

import importlib

import torch

from .. import _check
from .packed import cached_weights
from .scan import readable, through_operator

_drivers = None  # scan_cpu and step_cpu, once they are needed


def drivers():
    """The modules scan_cpu and step_cpu."""
    global _drivers
    if _drivers is None:
        names = (".scan_cpu", ".step_cpu")
        _drivers = tuple(importlib.import_module(name, __package__) for name in names)
    return _drivers


def known_weights(cell, weights, I, H, dtype):
    """The packed weights of a layer whose weights have been checked to be plain, of these sizes and this dtype, or
    None.

    The cache knows weights by identity, address and contents, so that they need not be looked at again.
    """
    packed = cached_weights(cell, weights)
    return packed if packed is not None and packed.checked == (I, H, dtype) else None


def packed_weights(cell, I, h, weights, D=1):
    """Packs the weights of a layer with input size I and plain states h (..., H), or returns None if they are not
    plain.

    Raises as `_check.layer_weights` does.
    """
    _check.layer_weights(cell, I, h, weights, D)
    if not _check.plain(h.dtype, *weights):
        return None
    packed = drivers()[0].packed_weights(cell, weights)
    packed.checked = (I, h.shape[-1], h.dtype)
    return packed


def steps(cell, packed, I, h, c, y):
    """A `step_cpu.Steps`: one layer, one direction, over fixed memory h, c and y (B, H)."""
    return drivers()[1].Steps(cell, packed, I, h, c, y)


def scan(cell, x, h_0, c_0, weights, batch_first):
    """(y, h_n, c_n) by the driver, past the dispatcher. x, h_0 and c_0 are plain tensors of the right sizes."""
    scan_cpu, step_cpu = _drivers or drivers()
    packed = known_weights(cell, weights, x.shape[2], h_0.shape[2], x.dtype)
    if packed is None:
        packed = packed_weights(cell, x.shape[2], h_0, weights, len(h_0))
        if packed is None:
            return through_operator(cell, x, h_0, c_0, weights, batch_first)
    x = readable(x)
    D, B, H = h_0.shape
    if D == 1 and B < step_cpu.FEW_ROWS and x.shape[1 if batch_first else 0] == 1:
        y = x.new_empty((B, 1, H)) if batch_first and B > 1 else torch.empty_like(h_0)
        h_n, c_n = torch.empty_like(h_0), None if c_0 is None else torch.empty_like(c_0)
        step_cpu.step(cell, packed, x, x.stride(0 if batch_first else 1), B, h_0, c_0, y, h_n, c_n)
        return y, h_n, c_n
    return scan_cpu.forward(cell, x, h_0, c_0, weights, batch_first, False, packed)[:3]


def step(cell, x, h, c, weights):
    """(h', c') by the driver, past the dispatcher. x (B, I), h and c (B, H) are plain tensors, h and c contiguous."""
    step_cpu = (_drivers or drivers())[1]
    B, I = x.shape
    packed = known_weights(cell, weights, I, h.shape[1], x.dtype)
    if packed is None or B >= step_cpu.FEW_ROWS:
        c_0 = None if c is None else c.unsqueeze(0)
        _, h_n, c_n = scan(cell, x.unsqueeze(0), h.unsqueeze(0), c_0, weights, False)
        return h_n.squeeze(0), None if c is None else c_n.squeeze(0)
    row, dense = x.stride()
    if dense != 1:
        x, row = x.contiguous(), I
    h_n, c_n = torch.empty_like(h), None if c is None else torch.empty_like(c)
    step_cpu.step(cell, packed, x, row, B, h, c, h_n, h_n, c_n)
    return h_n, c_n
