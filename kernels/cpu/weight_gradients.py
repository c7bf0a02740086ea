"""Gradients of weights and biases from the gates' gradients of a chunk: products over all of its rows, whose terms are
rows, or pairs of rows where they are bfloat16 (operands.py). The sums are of the lanes' type."""

from . import target
from .inner import inner
from .layout import WIDE
from .operands import outer_term
from .parts import load_part, store_part
from .product import LINE
from .tiles import add, prefetch, tile_op, zeros

_BLOCK = 64  # terms summed in one go (see product.BLOCK): torch adds the weights' gradients step by step


def into_weights(shape):
    """dW (gates * H, N) (+)= D^T panels, of D the given slots, for a range of slabs. A last panel of few columns has
    tiles half as wide."""
    size, W, blocks, units, row_slots = shape.size, shape.lanes, shape.blocks, shape.slab_units, shape.slots
    wide = shape.wide
    tile, narrow = _weights_tile(WIDE, shape), _weights_tile(1, shape)

    @inner
    def run(gradients, slots, slab_bytes, terms, panels, dw, N, H, first_chunk, slab_range):
        for slab in range(slab_range[0], slab_range[1]):
            for column in range(0, N, wide):
                b = panels + size * terms * column
                for block in range(blocks):
                    unit = slab * units + block * W
                    for gate, slot in enumerate(slots):
                        a = gradients + slab_bytes * slab + size * (block * row_slots + slot) * W
                        place = (dw + size * ((gate * H + unit) * N + column), N, H - unit, N - column)
                        if N - column > W:
                            tile(a, terms, b, place, first_chunk)
                        else:
                            narrow(a, terms, b, place, first_chunk)

    return run


def _weights_tile(n, shape):
    """A function (a, terms, b, place, first_chunk): W units of a gate at a, times n vectors of a panel at b."""
    size, W, gradient_row = shape.size, shape.lanes, shape.gradient_row
    m = min(1 << (target.current().rows(n).bit_length() - 1), W)  # a divisor of W
    multiply, ask = _down_rows(m, n, shape), _ask_for(m, n, shape)

    @inner
    def run(a, terms, b, place, first_chunk):
        dw, N, units, columns = place
        for lane in range(0, min(units, W), m):
            here = (dw + size * N * lane, N, units - lane, columns)
            ask(here)
            acc = multiply(a + size * lane, gradient_row, terms, b)
            if not first_chunk:
                acc = add(acc, load_part(acc, here))
            store_part(acc, here)

    return run


def _ask_for(m, n, shape):
    """A function (place) that prefetches a tile of the weights' gradients, which is added to only at the end."""
    size, width = shape.size, shape.size * n * shape.lanes

    @inner
    def ask(place):
        for row in range(m):
            for line in range(0, width, LINE):
                prefetch(place[0] + size * place[1] * row + line)

    return ask


def _down_rows(m, n, shape):
    """A function (a, a_row, terms, b) -> (m lanes of D, n vectors): D's lanes times packed rows, summed."""
    size, wide, together, outer = shape.size, shape.wide, shape.per_lane, outer_term(shape.size, shape.stored)

    @inner
    def multiply(a, a_row, terms, b):
        total = zeros(m, n, size)
        for first in range(0, terms, _BLOCK):
            block = zeros(m, n, size)
            for term in range(first, min(first + _BLOCK, terms)):
                block = outer(block, a + size * a_row * term, together, b + size * wide * term)
            total = add(total, block)
        return total

    return multiply


def into_biases(shape):
    """db_ih, db_hh (gates * H) (+)= the sums of D's rows, for a range of slabs."""
    n, size, units = shape.blocks * shape.slots, shape.size, shape.slab_units
    row_bytes = shape.stored * shape.gradient_row
    write, add_to, add_row = _write_biases(shape, False), _write_biases(shape, True), _add_row(shape)

    @inner
    def run(gradients, slab_bytes, rows, db_ih, db_hh, H, first_chunk, slab_range):
        for slab in range(slab_range[0], slab_range[1]):
            source, unit = gradients + slab_bytes * slab, units * slab
            total = zeros(1, n, size)
            for start in range(0, rows, _BLOCK):
                block = zeros(1, n, size)
                for row in range(start, min(start + _BLOCK, rows)):
                    block = add_row(block, (source + row_bytes * row,))
                total = add(total, block)
            places = (db_ih + size * unit, db_hh + size * unit, H, H - unit)
            if first_chunk:
                write(total, places)
            else:
                add_to(total, places)

    return run


def _add_row(shape):
    @tile_op
    def op(frame):
        (place,) = frame.integers
        for j, vector in enumerate(frame.tile[0]):
            frame.tile[0][j] = vector + frame.load(place + j * frame.width * shape.stored, stored=shape.stored)

    return op


def _write_biases(shape, adds):
    """(db_ih, db_hh, H, left): a slab's sums to its units' places, or added to what is there."""
    size, W = shape.size, shape.lanes

    @tile_op
    def op(frame):
        db_ih, db_hh, H, left = frame.integers
        for block in range(shape.blocks):
            inside = frame.below(left - block * W)
            for slots, db in ((shape.x_slots, db_ih), (shape.u_slots, db_hh)):
                for gate, slot in enumerate(slots):
                    value, place = frame.tile[0][block * shape.slots + slot], db + (H * gate + block * W) * size
                    frame.store(value + frame.load(place, inside) if adds else value, place, inside)

    return op
