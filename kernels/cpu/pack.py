"""Weights in the order in which the kernels read them (layout.py)."""

from .gradient_product import wide_and_narrow
from .inner import inner
from .layout import PANEL, layout, panel_start, wide_panels
from .operands import load_rows
from .parts import load_part, store_part
from .tiles import store, transpose, zeros

ARGUMENTS = ("weights", "packed", "H", "K")


def build(cell, size, operand, stored=None):
    """Pack a row-major (gates * H, K) matrix. `operand` is

    "forward": the weights of the scan's forward (a bias is a matrix with K = 1), or
    "h", "x": those that carry the gates' gradients back to h or to x; stored: bytes of an element.
    """
    if operand == "forward":
        return _forward(layout(cell, size, False), size)
    shape = layout(cell, size, True, stored)
    return _backward(shape, shape.u_slots if operand == "h" else shape.x_slots, size)


def _forward(shape, size):
    W, gates, blocks, vectors = shape.lanes, shape.gates, shape.blocks, shape.vectors
    units = shape.slab_units

    @inner
    def pack(weights, packed, H, K):
        for slab in range(-(-H // units)):
            for block in range(blocks):
                unit = slab * units + block * W
                for gate in range(gates):
                    source = weights + size * (gate * H + unit) * K
                    target = packed + size * W * (slab * K * vectors + block * gates + gate)
                    for k in range(0, K, W):
                        square = transpose(load_part(zeros(W, 1, size), (source + size * k, K, H - unit, K - k)), (0,))
                        store_part(square, (target + size * W * vectors * k, W * vectors, K - k, W))

    return pack


def _backward(shape, slots, size):
    W, units, gates, narrow = shape.lanes, shape.slab_units, len(slots), shape.narrow
    stored, together = shape.stored, shape.per_lane
    start_of, wide_of = inner(panel_start), inner(wide_panels)
    copy_wide, copy_narrow = wide_and_narrow(shape, lambda n: _copy(n, shape))

    @inner
    def pack(weights, packed, H, K):
        padded, wide = -(-H // units) * units, wide_of(K, W, narrow)
        for panel in range(-(-K // (PANEL * W))):
            column, vectors = W * start_of(panel, wide), PANEL if panel < wide else narrow
            first = packed + stored * column * padded * gates
            for unit in range(0, padded, together):
                block, lane = unit // W, unit % W
                for gate in range(gates):
                    source = weights + stored * ((gate * H + unit) * K + column)
                    target = first + stored * W * vectors * ((block * gates + gate) * W + lane)
                    if panel < wide:
                        copy_wide(source, K, target, H - unit, K - column)
                    else:
                        copy_narrow(source, K, target, H - unit, K - column)

    return pack


def _copy(n, shape):
    """A function that copies n vectors of a term of units: `rows` of them exist, and `left` columns."""
    size, stored, W, part = shape.size, shape.stored, shape.lanes, load_rows(shape.size, shape.stored)

    @inner
    def copy(source, stride, target, rows, left):
        for j in range(n):
            columns = left - W * j if rows > 0 else 0
            store(part(zeros(1, 1, size), (source + stored * W * j, stride, rows, columns)), target + size * W * j, 0)

    return copy
