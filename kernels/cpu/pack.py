"""Weights in the order in which the kernels read them (layout.py)."""

from .inner import inner
from .layout import PANEL, layout
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
    W, blocks, units = shape.lanes, shape.blocks, shape.slab_units
    gates = len(slots)

    @inner
    def pack(weights, packed, H, K):
        slabs = -(-H // units)
        row = size * PANEL * W
        for panel in range(-(-K // (PANEL * W))):
            column = panel * PANEL * W
            for unit in range(slabs * units):
                block, lane = unit // W, unit % W
                for gate in range(gates):
                    source = weights + size * ((gate * H + unit) * K + column)
                    part = load_part(zeros(1, PANEL, size), (source, 0, 1 if unit < H else 0, K - column))
                    store(part, packed + row * ((panel * slabs * blocks + block) * gates * W + gate * W + lane), 0)

    return pack
