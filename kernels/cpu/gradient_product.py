"""Rows of gate gradients times the weights that carry them back: to h, step by step, and to x."""

from .inner import inner
from .layout import PANEL, panel_start
from .product import BLOCK, LINE, accumulator, by_rows
from .tiles import add, load, store, zeros


def wide_and_narrow(shape, make):
    """make(n) for the vectors of either kind of panel, once where they are the same."""
    wide = make(PANEL)
    return wide, wide if shape.narrow == PANEL else make(shape.narrow)


def gradient_product(shape):
    """A function (panel, wide, rows, operands, segments, sums): sums (B, n W) = gradients (B, slots of all units) times
    a panel of n vectors, one of the first `wide` ones or narrow (layout.py).

    rows: first, last, B; operands: gradients, the rows of a slab of them, H, the packed panels; segments: those of the
    slots, given in a call so that a kernel has one product for all of them.
    """
    stored, W, units, gradient_row = shape.stored, shape.lanes, shape.slab_units, shape.stored * shape.gradient_row
    start_of, vector = inner(panel_start), stored * W * units * shape.gates  # bytes of a panel's vector, of a slab
    multiply_wide, multiply_narrow = wide_and_narrow(shape, lambda n: _panel_product(shape, n))

    @inner
    def run(panel, wide, rows, operands, segments, sums):
        (first, last, B), (gradients, slab_rows, H, packed) = rows, operands
        place = packed + vector * start_of(panel, wide) * -(-H // units)
        if panel < wide:
            multiply_wide(first, last, B, (gradients, gradient_row * slab_rows, H, place), segments, sums)
        else:
            multiply_narrow(first, last, B, (gradients, gradient_row * slab_rows, H, place), segments, sums)

    return run


def _panel_product(shape, n):
    """Block by block of BLOCK terms, all rows: so a block of weights is read from the cache by all rows before the next
    one is needed."""
    W, units, slab_terms = shape.lanes, shape.slab_units, shape.slab_units * shape.gates // shape.per_lane
    slab_weights, group = shape.size * n * W * slab_terms, max(1, BLOCK // slab_terms)
    add_block = by_rows(lambda m: _add_block(m, shape, n), PANEL)

    @inner
    def run(first, last, B, operands, segments, sums):
        gradients, slab_bytes, H, packed = operands
        slabs = -(-H // units)
        for slab in range(0, slabs, group):
            here = (gradients + slab_bytes * slab, slab_bytes, min(group, slabs - slab), H - units * slab)
            add_block(first, last, B, (here, packed + slab_weights * slab, segments, slab == 0, sums))

    return run


def _add_block(m, shape, n):
    multiply = _slab_product(m, shape, n)
    size, units, row_bytes, width = shape.size, shape.slab_units, shape.stored * shape.gradient_row, n * shape.lanes
    slab_weights = shape.stored * width * units * shape.gates
    lines = size * width // LINE  # of a term's weights
    slab_lines = slab_weights // lines

    @inner
    def tile(row, arguments):
        (gradients, slab_bytes, slabs, left), packed, segments, is_first, sums = arguments
        a = gradients + row_bytes * row
        ahead = packed
        if row < m * lines:  # each tile asks for its part of the next block
            ahead = packed + slabs * (slab_weights + slab_lines * (row // m))
        acc = zeros(m, n, size)
        for slab in range(slabs):
            here, weights = a + slab_bytes * slab, packed + slab_weights * slab
            acc = multiply(acc, here, weights, ahead + slab_lines * slab, left - units * slab, segments)
        place = sums + size * width * row
        if not is_first:
            acc = add(acc, load(acc, place, width))
        store(acc, place, width)

    return tile


def _slab_product(m, shape, n):
    """A function (acc, a, b, ahead, left, segments): acc += one slab's part of rows of gradients times its packed
    weights, the terms of `left` units of it; past those both are zero."""
    stored, W, units, row_elements = shape.stored, shape.lanes, shape.slab_units, shape.gradient_row
    together = shape.per_lane
    vectors, accumulate = stored * n * W, accumulator(together > 1)

    @inner
    def run(acc, a, b, ahead, left, segments):
        whole, apart, few = segments
        table, count = (whole, few) if left >= units else (apart, len(apart))
        for i in range(count):
            start, length, place, block = table[i]
            terms = length * -(-max(0, min(W, left - W * block)) // together)
            line = ahead + LINE * W * place // together
            acc = accumulate(acc, a + stored * W * start, row_elements, terms, b + vectors * W * place, line)
        return acc

    return run


def segments_of(shape, slots):
    """What a product goes through in a slab's row of gradients, in as few segments as there are and with each slot of
    each block apart: (first vector, vectors, place among the packed ones, block), both made up to one length; and how
    many there are of the former."""
    apart = [
        (shape.slots * block + slot, 1, len(slots) * block + place, block)
        for block in range(shape.blocks)
        for place, slot in enumerate(slots)
    ]
    whole = []
    for start, _, place, _ in apart:
        if whole and start == whole[-1][0] + whole[-1][1]:
            whole[-1][1] += 1
        else:
            whole.append([start, 1, place, 0])
    filled = whole + [[0, 0, 0, 0]] * (len(apart) - len(whole))
    return tuple(map(tuple, filled)), tuple(apart), len(whole)
