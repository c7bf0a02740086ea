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
_LONGEST = 1 << 16  # elements of a row of int8 weights: sums of their products with bytes stay below 2^31
_count = 0


def check_form(form, dtype, I, H):
    """Raises ValueError for weights (G H, I) and (G H, H) of a dtype that cannot be packed in a form."""
    if dtype != torch.float32:
        raise ValueError(f"weight_format={form!r} is for float32 weights, got {dtype}")
    if form == "int8" and max(I, H) > _LONGEST:
        raise ValueError(f"weight_format='int8' is for input and hidden sizes of up to {_LONGEST}, got {max(I, H)}")


def pack_count():
    """How many times this process has packed a layer's weights."""
    return _count


class PackedWeights:
    """The forward weights of one layer, packed: for each of its D directions (w_ih, w_hh, b_ih, b_hh) addresses.

    `directions[d]` are four addresses; `memory` is what they point into; `weight` the bytes of an element of the
    weights.
    """

    def __init__(self, cell, weights, form=None):
        global _count
        _count += 1
        groups = per_direction(cell, weights)
        self.memory, self.directions = zip(*(_pack_direction(cell, *_matrices(group, form)) for group in groups))
        self.weight = weights[0].itemsize if form is None else FORMS[form].itemsize


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


def _matrices(group, form):
    """The matrices of a direction that are packed, in a form: w_ih, w_hh, then for either the columns that the kernels
    add or multiply by, None where they are zero: the bias, and of int8 weights the scales and the sums of their rows.

    int8: whole numbers times a scale a row, the largest of which is 127 times its scale.
    """
    weights, columns = [w.detach() for w in group[:2]], [[b] for b in (*group[2:], None, None)[:2]]
    if form == "int8":
        for i, w in enumerate(weights):
            scale = w.abs().amax(1).div(_LARGEST).clamp_min(torch.finfo(w.dtype).tiny)
            weights[i] = (w / scale[:, None]).round().to(torch.int8)
            columns[i] += [scale, weights[i].sum(1, dtype=w.dtype)]
    elif form == "bfloat16":
        weights = [w.bfloat16() for w in weights]
    return weights, columns


def _pack_direction(cell, weights, columns):
    """(memory, addresses of w_ih, w_hh, b_ih and b_hh in it) of one direction.

    Narrow weights are packed as what they are in memory, as many as fill a lane in its place; columns are what the
    kernels compute in.
    """
    matrices = [*weights, *columns[0], *columns[1]]
    size, H = widths(weights[0].dtype)[0], weights[1].shape[1]
    kind = torch.float64 if size == 8 else torch.float32
    pack = compiled().kernel("pack", cell=cell, size=size, operand="forward")
    dense = [None if m is None else _dense(m.detach(), size // m.itemsize) for m in matrices]
    terms = tuple(1 if m is None or m.dim() == 1 else m.shape[1] * m.itemsize // size for m in dense)
    *starts, end = _starts(compiled().layout(cell, size, False), H, terms)
    memory = on_huge_pages(torch.empty(end // size, dtype=kind, device="cpu"))
    first = memory.data_ptr()
    for matrix, K, start, after in zip(dense, terms, starts, [*starts[1:], end]):
        if matrix is None:
            memory[start // size : after // size].zero_()
        else:
            pack(matrix.data_ptr(), first + start, H, K)
    return memory, tuple(first + starts[i] for i in (0, 1, 2, 2 + len(columns[0])))


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
