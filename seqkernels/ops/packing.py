"""Weights packed for the CPU kernels (kernels/cpu/layout.py)."""

from functools import lru_cache
from itertools import accumulate

import torch

from seqkernels.kernels.cells import CELLS

from .compiled import compiled, computed, widths
from .workspace import on_huge_pages

# Forms that float32 weights are packed in where that is asked for; by default weights are packed as they are.
FORMS = {"bfloat16": torch.bfloat16, "int8": torch.int8}
_LARGEST = 127  # of int8
_count = 0


def pack_count():
    """How many times this process has packed a layer's weights."""
    return _count


class PackedWeights:
    """The forward weights of one layer, packed: for each of its D directions (w_ih, w_hh, b_ih, b_hh) addresses.

    `directions[d]` are four addresses; `memory` is what they point into; `weight` the bytes that a lane reads of the
    weights at a term.
    """

    def __init__(self, cell, weights, form=None):
        global _count
        _count += 1
        pack = _pack_direction if form is None else lambda *given: _pack_narrow(*given, form)
        self.memory, self.directions = zip(*(pack(cell, group) for group in per_direction(cell, weights)))
        self.weight = widths(weights[0].dtype)[0] if form is None else FORMS[form].itemsize


def pack_backward(cell, weight, operand):
    """A (G H, K) weight packed for the gates' gradients: operand "h" (W_hh) or "x" (W_ih)."""
    size, stored = widths(weight.dtype)
    H, K = weight.shape[0] // CELLS[cell].gates, weight.shape[1]
    weight = weight.contiguous()
    packed = weight.new_empty(compiled().layout(cell, size, True).backward_weights(H, K))
    pack = compiled().kernel("pack", cell=cell, size=size, operand=operand, stored=stored)
    pack(weight.data_ptr(), packed.data_ptr(), H, K)
    return packed


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
    memory, places = _pack_all(cell, [*group, None, None][:4])
    return memory, tuple(memory.data_ptr() + place for place in places)


def _pack_narrow(cell, group, form):
    """The same of float32 weights in one of FORMS. int8: whole numbers times a scale a row, which lies behind the
    rows' biases; the largest of a row is 127 times its scale."""
    weights, biases = group[:2], [*group[2:], None, None][:2]
    if form == "int8":
        scales = [w.detach().abs().amax(1).div(_LARGEST).clamp_min(torch.finfo(w.dtype).tiny) for w in weights]
        weights = [(w.detach() / s[:, None]).round() for w, s in zip(weights, scales)]
    else:
        scales = ()
    ends = [column for i, bias in enumerate(biases) for column in (bias, *scales[i : i + 1])]
    memory, places = _pack_all(cell, [*weights, *ends])
    first, split = memory.data_ptr(), places[2] // memory.itemsize
    narrow = memory[:split].to(FORMS[form])
    recurrent = places[1] // memory.itemsize * narrow.itemsize
    starts = (first + places[2], first + places[2 + len(ends) // 2])
    return (memory, narrow), (narrow.data_ptr(), narrow.data_ptr() + recurrent, *starts)


def _pack_all(cell, matrices):
    """(memory, the bytes before each) of weights (G H, K), w_ih and w_hh first, and columns (G H,), None for zeros."""
    dtype, H = matrices[0].dtype, matrices[1].shape[1]
    size, stored = widths(dtype)
    pack = compiled().kernel("pack", cell=cell, size=size, operand="forward")
    dense = [None if m is None else _dense(m.detach(), size // stored) for m in matrices]
    terms = tuple(1 if m is None or m.dim() == 1 else m.shape[1] * stored // size for m in dense)
    *starts, end = _starts(compiled().layout(cell, size, False), H, terms)
    memory = on_huge_pages(torch.empty(end // size, dtype=computed(dtype), device="cpu"))
    first = memory.data_ptr()
    for matrix, K, start, after in zip(dense, terms, starts, [*starts[1:], end]):
        if matrix is None:
            memory[start // size : after // size].zero_()
        else:
            pack(matrix.data_ptr(), first + start, H, K)
    return memory, starts


@lru_cache(maxsize=256)
def _starts(shape, H, terms):
    """The bytes before each of some packed matrices with so many terms, then those of all."""
    return tuple(accumulate((shape.size * shape.forward_weights(H, K) for K in terms), initial=0))


def _dense(weight, together):
    """A weight in rows of a multiple of `together` elements, a column in what the kernels compute in."""
    if weight.dim() == 1:
        return weight.to(computed(weight.dtype)).contiguous()
    missing = -weight.shape[1] % together
    return torch.nn.functional.pad(weight, (0, missing)) if missing else weight.contiguous()
