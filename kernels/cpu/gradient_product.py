"""Rows of gate gradients times the weights that carry them back: to h, step by step, and to x."""

from .inner import inner
from .layout import PANEL, panel_start
from .product import BLOCK, LINE, accumulator, by_rows
from .tiles import add, load, store, zeros


def gradient_product(shape, slots):
    """A function (panel, wide, rows, operands, sums): sums (B, n W) = gradients (B, slots of all units) times a panel
    of n vectors, one of the first `wide` ones or narrow (layout.py).

    rows: first, last, B; operands: gradients, the rows of a slab of them, H, the packed panels.
    """
    stored, W, units, gradient_row = shape.stored, shape.lanes, shape.slab_units, shape.stored * shape.gradient_row
    start_of, vector = inner(panel_start), stored * W * units * len(slots)  # bytes of a panel's vector, of a slab
    multiply_wide, multiply_narrow = (_panel_product(shape, slots, n) for n in (PANEL, shape.narrow))

    @inner
    def run(panel, wide, rows, operands, sums):
        (first, last, B), (gradients, slab_rows, H, packed) = rows, operands
        place = packed + vector * start_of(panel, wide) * -(-H // units)
        if panel < wide:
            multiply_wide(first, last, B, (gradients, gradient_row * slab_rows, H, place), sums)
        else:
            multiply_narrow(first, last, B, (gradients, gradient_row * slab_rows, H, place), sums)

    return run


def _panel_product(shape, slots, n):
    """Block by block of BLOCK terms, all rows: so a block of weights is read from the cache by all rows before the next
    one is needed."""
    W, units, slab_terms = shape.lanes, shape.slab_units, shape.slab_units * len(slots) // shape.per_lane
    slab_weights, group = shape.size * n * W * slab_terms, max(1, BLOCK // slab_terms)
    add_block = by_rows(lambda m: _add_block(m, shape, slots, n), PANEL)

    @inner
    def run(first, last, B, operands, sums):
        gradients, slab_bytes, H, packed = operands
        slabs = -(-H // units)
        for slab in range(0, slabs, group):
            here = (gradients + slab_bytes * slab, slab_bytes, min(group, slabs - slab), H - units * slab)
            add_block(first, last, B, (here, packed + slab_weights * slab, slab == 0, sums))

    return run


def _add_block(m, shape, slots, n):
    multiply, multiply_part = _slab_product(m, shape, slots, n), _part_product(m, shape, slots, n)
    size, units, row_bytes, width = shape.size, shape.slab_units, shape.stored * shape.gradient_row, n * shape.lanes
    slab_weights = shape.stored * width * units * len(slots)
    lines = size * width // LINE  # of a term's weights
    slab_lines = slab_weights // lines

    @inner
    def tile(row, arguments):
        (gradients, slab_bytes, slabs, left), packed, is_first, sums = arguments
        a = gradients + row_bytes * row
        ahead = packed
        if row < m * lines:  # each tile asks for its part of the next block
            ahead = packed + slabs * (slab_weights + slab_lines * (row // m))
        acc = zeros(m, n, size)
        whole = min(slabs, left // units)
        for slab in range(whole):
            acc = multiply(acc, a + slab_bytes * slab, packed + slab_weights * slab, ahead + slab_lines * slab)
        if whole < slabs:
            acc = multiply_part(acc, a + slab_bytes * whole, packed + slab_weights * whole, ahead, left - units * whole)
        place = sums + size * width * row
        if not is_first:
            acc = add(acc, load(acc, place, width))
        store(acc, place, width)

    return tile


def _slab_product(m, shape, slots, n):
    """A function (acc, a, b, ahead): acc += one slab's part of rows of gradients times its packed weights."""
    stored, W, blocks, row_elements = shape.stored, shape.lanes, shape.blocks, shape.gradient_row
    K, row_slots, vectors, together = len(slots) * W, shape.slots, stored * n * W, shape.per_lane
    runs, accumulate, row_terms = _runs(slots), accumulator(together > 1), row_elements // together

    if K * blocks == row_elements:

        @inner
        def run(acc, a, b, ahead):
            return accumulate(acc, a, row_elements, row_terms, b, ahead)

    else:

        @inner
        def run(acc, a, b, ahead):
            for block in range(blocks):
                for start, length, place in runs:
                    source, count = a + stored * W * (block * row_slots + start), length * W // together
                    first = block * K + place * W
                    line = ahead + LINE // together * first
                    acc = accumulate(acc, source, row_elements, count, b + vectors * first, line)
            return acc

    return run


def _part_product(m, shape, slots, n):
    """The same with an argument more, the units that the slab, the last one, has."""
    stored, W, blocks, row_elements = shape.stored, shape.lanes, shape.blocks, shape.gradient_row
    row_slots, vectors, places, together = shape.slots, stored * n * W, tuple(enumerate(slots)), shape.per_lane
    accumulate = accumulator(together > 1)

    @inner
    def run(acc, a, b, ahead, left):
        for block in range(blocks):
            terms = max(0, -(-min(W, left - W * block) // together))
            for place, slot in places:
                source, first = a + stored * W * (block * row_slots + slot), W * (block * len(places) + place)
                acc = accumulate(acc, source, row_elements, terms, b + vectors * first, ahead)
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
