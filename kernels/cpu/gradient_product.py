"""Rows of gate gradients times the weights that carry them back: to h, step by step, and to x."""

from .inner import inner
from .layout import PANEL
from .product import BLOCK, LINE, accumulate, by_rows
from .tiles import add, load, store, zeros


def gradient_product(shape, slots):
    """A function (first, last, B, operands, sums): sums (B, PANEL W) = gradients (B, slots of all units) times a panel.

    operands: gradients, the bytes of a slab of them, slabs, the packed panel. Block by block of
    BLOCK terms, all rows: so a block of weights is read from the cache by all rows before the next one is needed.
    """
    size, W = shape.size, shape.lanes
    slab_weights = size * PANEL * W * shape.blocks * len(slots) * W
    group = max(1, BLOCK * size * PANEL * W // slab_weights)
    add_block = by_rows(lambda m: _add_block(m, shape, slots, slab_weights), PANEL)

    @inner
    def run(first, last, B, operands, sums):
        gradients, slab_bytes, slabs, packed = operands
        for slab in range(0, slabs, group):
            here = (gradients + slab_bytes * slab, slab_bytes, min(group, slabs - slab), packed + slab_weights * slab)
            add_block(first, last, B, (here, slab == 0, sums))

    return run


def _add_block(m, shape, slots, slab_weights):
    multiply = _slab_product(m, shape, slots)
    size, row_elements, width = shape.size, shape.gradient_row, PANEL * shape.lanes
    lines = size * width // LINE  # of a term's weights
    slab_lines = slab_weights // lines

    @inner
    def tile(row, arguments):
        (gradients, slab_bytes, slabs, packed), is_first, sums = arguments
        a = gradients + size * row_elements * row
        ahead = packed
        if row < m * lines:  # each tile asks for its part of the next block
            ahead = packed + slabs * (slab_weights + slab_lines * (row // m))
        acc = zeros(m, PANEL, size)
        for slab in range(slabs):
            acc = multiply(acc, a + slab_bytes * slab, packed + slab_weights * slab, ahead + slab_lines * slab)
        place = sums + size * width * row
        if not is_first:
            acc = add(acc, load(acc, place, width))
        store(acc, place, width)

    return tile


def _slab_product(m, shape, slots):
    """A function (acc, a, b, ahead): acc += one slab's part of rows of gradients times its packed weights."""
    size, W, blocks, row_elements = shape.size, shape.lanes, shape.blocks, shape.gradient_row
    K, row_slots, vectors = len(slots) * W, shape.slots, size * PANEL * W
    runs = _runs(slots)

    if K * blocks == row_elements:

        @inner
        def run(acc, a, b, ahead):
            return accumulate(acc, a, row_elements, row_elements, b, ahead)

    else:

        @inner
        def run(acc, a, b, ahead):
            for block in range(blocks):
                for start, length, place in runs:
                    source = a + size * W * (block * row_slots + start)
                    first = block * K + place * W
                    acc = accumulate(acc, source, row_elements, length * W, b + vectors * first, ahead + LINE * first)
            return acc

    return run


def _runs(slots):
    """Consecutive slots as (first slot, how many, place in the packed weights)."""
    runs = []
    for place, slot in enumerate(slots):
        if runs and slot == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([slot, 1, place])
    return tuple(tuple(run) for run in runs)
