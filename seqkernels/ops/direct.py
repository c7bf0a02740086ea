"""The short path of plain calls that need no gradient: past the dispatcher to the drivers, with kept packed weights."""

import importlib

from .. import _check
from .compiled import compiled
from .packed import PackedWeights, cached, kept_weights
from .scan import through_operator
from .scan_kernels import readable

_drivers = None  # scan_cpu and step_cpu, once they are needed


def drivers():
    """The modules scan_cpu and step_cpu."""
    global _drivers
    if _drivers is None:
        names = (".scan_cpu", ".step_cpu")
        _drivers = tuple(importlib.import_module(name, __package__) for name in names)
    return _drivers


def kept(cell, weights, I, h, D=1):
    """The Kept weights of a layer with input size I and plain states h (..., H), or None if they are not plain or not
    kept.

    Weights that are known by identity and contents need not be looked at again. Raises as `_check.layer_weights` does.
    """
    known, needed = cached(cell, weights), (I, h.shape[-1], h.dtype)
    if known is not None and known.checked == needed and known.holds(weights):
        return known
    _check.layer_weights(cell, I, h, weights, D)
    known = kept_weights(cell, weights) if _check.plain(h.dtype, *weights) else None
    if known is not None:
        known.checked = needed
    return known


def plan(cell, x, x_row, B, h, c, y, weights):
    """A `step_cpu.Plan`, or None where none can be made: for plain tensors of the right sizes, weights by name.

    h and c are contiguous and, but for the number of dimensions, (B, H); x's B rows are x_row elements apart. y: a
    tensor like the first result, or None where that is h_n. c is None for a cell without it.
    """
    if compiled().few_rows <= B or x.stride(-1) != 1:
        return None
    known = kept(cell, list(weights.values()), x.shape[-1], h)
    return None if known is None else drivers()[1].Plan(cell, known, weights, x, x_row, B, h, c, y)


def in_place(cell, I, states, y, weights):
    """A `step_cpu.InPlace` of one layer, or None where its plain weights, of input size I, cannot be kept."""
    known = kept(cell, weights, I, y)
    return None if known is None else drivers()[1].InPlace(cell, known, *states, y)


def scan(cell, x, h_0, c_0, weights, batch_first, recompute=False):
    """(y, h_n, c_n) by the driver, past the dispatcher. x, h_0 and c_0 are plain tensors of the right sizes.

    recompute: of no effect without a gradient.
    """
    known = kept(cell, weights, x.shape[2], h_0, len(h_0))
    if known is not None:
        packed = known.packed
    elif _check.plain(x.dtype, *weights):
        packed = PackedWeights(cell, weights)
    else:
        return through_operator(cell, x, h_0, c_0, weights, batch_first)
    return drivers()[0].forward(cell, readable(x), h_0, c_0, weights, batch_first, False, packed)[:3]
