"""Weights in the order in which the kernels read them (layout.py)."""

from .inner import inner
from .layout import PANEL, layout, panel_start, wide_panels
from .parts import load_part, store_part
from .tiles import store, transpose, zeros

ARGUMENTS = ("weights", "packed", "H", "K")


def build(cell, size, operand):
    """Pack a row-major (gates * H, K) matrix. `operand` is

    "forward": the weights of the scan's forward (a bias is a matrix with K = 1), or
    "h", "x": those that carry the gates' gradients back to h or to x.
    """
    if operand == "forward":
        return _forward(layout(cell, size, False), size)
    shape = layout(cell, size, True)
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
    start_of, wide_of = inner(panel_start), inner(wide_panels)
    copy_wide, copy_narrow = (_copy(n, size) for n in (PANEL, narrow))

    @inner
    def pack(weights, packed, H, K):
        padded, wide = -(-H // units) * units, wide_of(K, W, narrow)
        for panel in range(-(-K // (PANEL * W))):
            column, vectors = W * start_of(panel, wide), PANEL if panel < wide else narrow
            first = packed + size * column * padded * gates
            for unit in range(padded):
                block, lane = unit // W, unit % W
                for gate in range(gates):
                    source = weights + size * ((gate * H + unit) * K + column)
                    target = first + size * W * vectors * ((block * gates + gate) * W + lane)
                    if panel < wide:
                        copy_wide(source, target, unit < H, K - column)
                    else:
                        copy_narrow(source, target, unit < H, K - column)

    return pack


def _copy(n, size):
    @inner
    def copy(source, target, exists, left):
        store(load_part(zeros(1, n, size), (source, 0, 1 if exists else 0, left)), target, 0)

    return copy
