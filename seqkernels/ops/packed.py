"""Packed weights, and the cache that keeps them while the weights are unchanged."""

import ctypes
import weakref

from seqkernels.kernels.cells import CELLS

from .compiled import compiled

_count = 0
_cache = {}


def pack_count():
    """How many times this process has packed a layer's weights."""
    return _count


class PackedWeights:
    """The forward weights of one layer, packed: for each of its D directions (w_ih, w_hh, b_ih, b_hh) addresses.

    `directions[d]` are four addresses; `tensors` keeps the memory they point into. `checked` is for the caller: what it
    knows about the weights.
    """

    checked = None

    def __init__(self, cell, weights):
        global _count
        _count += 1
        self.tensors = [_pack_direction(cell, group) for group in per_direction(cell, weights)]
        self.directions = [tuple(t.data_ptr() for t in group) for group in self.tensors]


def packed_weights(cell, weights):
    """The PackedWeights of a layer, from the cache if its weights are the same tensors with the same contents.

    A tensor is known by its identity, address, version and shape, and by its contents: writes through `.data` change no
    version. Of a large tensor only a sample is looked at (kernels/cpu/fingerprint.py). Inference tensors, which have no
    version, and tensors that are not contiguous are packed every time.
    """
    if any(w.is_inference() or not w.is_contiguous() for w in weights):
        return PackedWeights(cell, weights)
    packed = cached_weights(cell, weights)
    if packed is None:
        key = (cell, *map(id, weights))
        entry = _cache[key] = _Entry(cell, weights, key)
        packed = entry.packed
    return packed


def cached_weights(cell, weights):
    """The PackedWeights in the cache for these tensors, if they are unchanged, or None."""
    entry = _cache.get((cell, *map(id, weights)))
    return entry.packed if entry is not None and entry.holds(weights) else None


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


class _Entry:
    """Packed weights with what tells whether they still hold."""

    def __init__(self, cell, weights, key):
        # The entry leaves the cache with the first of its tensors, so that a key stands for the tensors themselves.
        self._alive = [weakref.ref(w, lambda _: _cache.pop(key, None)) for w in weights]
        self._known = [(w.data_ptr(), w._version, w.shape) for w in weights]
        pairs = [(w.data_ptr(), w.numel()) for w in weights]
        self._block = (ctypes.c_int64 * (2 * len(pairs)))(*(v for pair in pairs for v in pair))
        self._hash = ctypes.c_int64()
        self._fingerprint = compiled().kernel("fingerprint", size=weights[0].element_size())
        self._arguments = (ctypes.addressof(self._block), len(pairs), ctypes.addressof(self._hash))
        self._fingerprint(*self._arguments)
        self._sample = self._hash.value
        self.packed = PackedWeights(cell, weights)

    def holds(self, weights):
        for w, (pointer, version, shape) in zip(weights, self._known):
            if w.data_ptr() != pointer or w._version != version or w.shape != shape or not w.is_contiguous():
                return False
        self._fingerprint(*self._arguments)
        return self._hash.value == self._sample


def per_direction(cell, weights):
    """The flat list of a layer's weights as groups [w_ih, w_hh] or [w_ih, w_hh, b_ih, b_hh]."""
    rows = weights[0].shape[0]
    biased = len(weights) >= 4 and weights[2].dim() == 1 and weights[2].shape[0] == rows
    width = 4 if biased else 2
    return [weights[i : i + width] for i in range(0, len(weights), width)]


def _pack_direction(cell, group):
    w_ih, w_hh = group[:2]
    size, H = w_ih.element_size(), w_hh.shape[1]
    shape = compiled().layout(cell, size, False)
    pack = compiled().kernel("pack", cell=cell, size=size, operand="forward")
    packed = []
    for matrix in (w_ih, w_hh, *(b.unsqueeze(1) for b in group[2:])):
        matrix = matrix.detach().contiguous()
        target = matrix.new_empty(shape.forward_weights(H, matrix.shape[1]))
        pack(matrix.data_ptr(), target.data_ptr(), H, matrix.shape[1])
        packed.append(target)
    if len(group) == 2:
        packed += [w_ih.new_zeros(shape.forward_weights(H, 1))] * 2
    return packed
