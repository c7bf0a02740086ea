"""The cache that keeps packed weights while the weights are unchanged."""

import ctypes
import weakref
from operator import attrgetter

import torch

from seqkernels.kernels.cells import CELLS

from .compiled import compiled
from .packing import PackedWeights, pack_backward, per_direction

_POINTER, _VERSION = torch.Tensor.data_ptr, attrgetter("_version")
_cache = {}


def kept_weights(cell, weights, form=None):
    """The Kept of a layer in a form (`packing.FORMS`), from the cache if its weights are the same tensors with the same
    contents.

    A tensor is known by its identity, address, version and shape, and by its contents: writes through `.data` change no
    version. Of a large tensor only a sample is looked at (kernels/cpu/fingerprint.py). None for inference tensors,
    which have no version, and for tensors that are not contiguous: they are never kept.
    """
    kept = cached(cell, weights, form)
    if kept is None or not kept.holds(weights):
        if any(w.is_inference() or not w.is_contiguous() for w in weights):
            return None
        key = (cell, form, *map(id, weights))
        kept = _cache[key] = Kept(cell, weights, form, key)
    return kept


def kept_parameters(cell, weights, T):
    """The Kept of parameters in training, or None.

    A single step is one of an unrolled loop, and meets them again at the next; by the next longer scan they have mostly
    changed.
    """
    if T > 1 or not all(w.is_leaf and w.requires_grad for w in weights):
        return None
    return kept_weights(cell, weights)


def packed_by(kept, cell, weights):
    """The PackedWeights of a Kept; where it is None, of these weights, packed anew."""
    return PackedWeights(cell, weights) if kept is None else kept.packed


def cached(cell, weights, form=None):
    """What the cache holds for these very tensors, whose contents may have changed since, or None."""
    return _cache.get((cell, form, *map(id, weights)))


def forget(weights):
    """Drop what is packed from any of these tensors, and with it the cache's weak references to them."""
    gone = set(map(id, weights))
    for key in [key for key in list(_cache) if not gone.isdisjoint(key[2:])]:
        _cache.pop(key, None)


class Unmoved:
    """Whether tensors, whose shapes are known to be the same, are where they were, with no change by torch's
    operators."""

    def __init__(self, tensors):
        self._known = [*map(_POINTER, tensors), *map(_VERSION, tensors)]

    def __call__(self, tensors):
        return [*map(_POINTER, tensors), *map(_VERSION, tensors)] == self._known


class Kept:
    """The packed weights of a layer, and what tells whether they still hold.

    checked: for the caller, what it knows of the weights; shared: a weak reference to their SharedWeights, or None.
    """

    checked = shared = None

    def __init__(self, cell, weights, form, key):
        self.cell, self.form, self.has_c = cell, form, CELLS[cell].states == 2
        # It leaves the cache with the first of its tensors, so that a key stands for the tensors themselves.
        self._alive = [weakref.ref(w, lambda _: _cache.pop(key, None)) for w in weights]
        self.same = Unmoved(weights)
        self._shapes = [w.shape for w in weights]
        pairs = [(w.data_ptr(), w.numel()) for w in weights]
        self._pairs = (ctypes.c_int64 * (2 * len(pairs)))(*(v for pair in pairs for v in pair))
        self.tensors = (ctypes.addressof(self._pairs), len(pairs))
        self._fingerprint = compiled().kernel("fingerprint", size=weights[0].element_size())
        self.contents = self._fingerprint(*self.tensors)
        self.packed = PackedWeights(cell, weights, form)
        self._backward = {}

    def holds(self, weights):
        """Whether nothing has changed, contents included."""
        if not self.same(weights) or not all(w.is_contiguous() for w in weights):
            return False
        return [w.shape for w in weights] == self._shapes and self.unchanged()

    def backward(self, weights, d, operand):
        """Those of direction d of the weights, which hold, packed for the gradient that goes back to an operand
        (`packing.pack_backward`)."""
        packed = self._backward.get((d, operand))
        if packed is None:
            weight = per_direction(self.cell, weights)[d][operand == "h"]
            packed = self._backward[d, operand] = pack_backward(self.cell, weight, operand)
        return packed

    def unchanged(self):
        """Whether the contents of tensors that are the same still are those that were packed."""
        return self._fingerprint(*self.tensors) == self.contents
