"""Packed weights, and the cache that keeps them while the weights are unchanged."""

import ctypes
import weakref

import torch

from seqkernels.kernels.cells import CELLS

from .compiled import compiled, computed, widths
from .workspace import on_huge_pages

_POINTER, _VERSION = torch.Tensor.data_ptr, torch.Tensor._version.__get__
_count = 0
_cache = {}


def pack_count():
    """How many times this process has packed a layer's weights."""
    return _count


class PackedWeights:
    """The forward weights of one layer, packed: for each of its D directions (w_ih, w_hh, b_ih, b_hh) addresses.

    `directions[d]` are four addresses; `memory` is what they point into.
    """

    def __init__(self, cell, weights):
        global _count
        _count += 1
        self.memory, self.directions = zip(*(_pack_direction(cell, group) for group in per_direction(cell, weights)))


def kept_weights(cell, weights):
    """The Kept of a layer, from the cache if its weights are the same tensors with the same contents.

    A tensor is known by its identity, address, version and shape, and by its contents: writes through `.data` change no
    version. Of a large tensor only a sample is looked at (kernels/cpu/fingerprint.py). None for inference tensors,
    which have no version, and for tensors that are not contiguous: they are never kept.
    """
    kept = cached(cell, weights)
    if kept is None or not kept.holds(weights):
        if any(w.is_inference() or not w.is_contiguous() for w in weights):
            return None
        key = (cell, *map(id, weights))
        kept = _cache[key] = Kept(cell, weights, key)
    return kept


def cached(cell, weights):
    """What the cache holds for these very tensors, whose contents may have changed since, or None."""
    return _cache.get((cell, *map(id, weights)))


def forget(weights):
    """Drop what is packed from any of these tensors, and with it the cache's weak references to them."""
    gone = set(map(id, weights))
    for key in [key for key in _cache if not gone.isdisjoint(key[1:])]:
        _cache.pop(key, None)


def pack_backward(cell, weight, operand):
    """A (G H, K) weight packed for the gates' gradients: operand "h" (W_hh) or "x" (W_ih)."""
    size = weight.element_size()
    H, K = weight.shape[0] // CELLS[cell].gates, weight.shape[1]
    weight = weight.contiguous()
    packed = weight.new_empty(compiled().layout(cell, size, True).backward_weights(H, K))
    compiled().kernel("pack", cell=cell, size=size, operand=operand)(weight.data_ptr(), packed.data_ptr(), H, K)
    return packed


class Unmoved:
    """Whether tensors, whose shapes are known to be the same, are where they were, with no change by torch's
    operators."""

    def __init__(self, tensors):
        self._pointers, self._versions = list(map(_POINTER, tensors)), list(map(_VERSION, tensors))

    def __call__(self, tensors):
        return list(map(_POINTER, tensors)) == self._pointers and list(map(_VERSION, tensors)) == self._versions


class Kept:
    """The packed weights of a layer, and what tells whether they still hold.

    checked: for the caller, what it knows of the weights.
    """

    checked = None

    def __init__(self, cell, weights, key):
        self.cell, self.has_c = cell, CELLS[cell].states == 2
        # It leaves the cache with the first of its tensors, so that a key stands for the tensors themselves.
        self._alive = [weakref.ref(w, lambda _: _cache.pop(key, None)) for w in weights]
        self.same = Unmoved(weights)
        self._shapes = [w.shape for w in weights]
        pairs = [(w.data_ptr(), w.numel()) for w in weights]
        self._pairs = (ctypes.c_int64 * (2 * len(pairs)))(*(v for pair in pairs for v in pair))
        self.tensors = (ctypes.addressof(self._pairs), len(pairs))
        self._fingerprint = compiled().kernel("fingerprint", size=weights[0].element_size())
        self.contents = self._fingerprint(*self.tensors)
        self.packed = PackedWeights(cell, weights)

    def holds(self, weights):
        """Whether nothing has changed, contents included."""
        if not self.same(weights) or not all(w.is_contiguous() for w in weights):
            return False
        return [w.shape for w in weights] == self._shapes and self.unchanged()

    def unchanged(self):
        """Whether the contents of tensors that are the same still are those that were packed."""
        return self._fingerprint(*self.tensors) == self.contents


def per_layer(weights, L):
    """The flat list of L layers' weights as L lists."""
    per = len(weights) // L
    return [weights[i : i + per] for i in range(0, len(weights), per)]


def per_direction(cell, weights):
    """The flat list of a layer's weights as groups [w_ih, w_hh] or [w_ih, w_hh, b_ih, b_hh]."""
    rows = weights[0].shape[0]
    biased = len(weights) >= 4 and weights[2].dim() == 1 and weights[2].shape[0] == rows
    width = 4 if biased else 2
    return [weights[i : i + width] for i in range(0, len(weights), width)]


def _pack_direction(cell, group):
    """(memory, addresses of w_ih, w_hh, b_ih and b_hh in it) of one direction; biases that are not there are zero.

    bfloat16 weights are packed as what they are in memory, pairs of two in the place of a float32; biases are float32.
    """
    (size, stored), H = widths(group[0].dtype), group[1].shape[1]
    shape = compiled().layout(cell, size, False, stored)
    pack = compiled().kernel("pack", cell=cell, size=size, operand="forward")
    terms = (*(compiled().terms(w.shape[1], size, stored) for w in group[:2]), 1, 1)
    counts = [shape.forward_weights(H, w.shape[1]) for w in group[:2]]
    counts += [compiled().layout(cell, size, False).forward_weights(H, 1)] * 2
    memory = on_huge_pages(group[0].new_empty(sum(counts), dtype=computed(group[0].dtype)))
    address, addresses = memory.data_ptr(), []
    for count in counts:
        addresses.append(address)
        address += size * count
    for matrix, K, target in zip(group, terms, addresses):
        dense = _dense(matrix.detach(), size // stored)  # named, so that it lives as long as it is read
        pack(dense.data_ptr(), target, H, K)
    if len(group) == 2:
        memory[-2 * counts[2] :].zero_()
    return memory, tuple(addresses)


def _dense(weight, together):
    """A weight in rows of a multiple of `together` elements, a bias in what the kernels compute in."""
    if weight.dim() == 1:
        return weight.to(computed(weight.dtype)).contiguous()
    missing = -weight.shape[1] % together
    return torch.nn.functional.pad(weight, (0, missing)) if missing else weight.contiguous()
