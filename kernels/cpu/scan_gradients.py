"""Gradients of x, the weights and the biases from the gates' gradients of one chunk, as tile products.

    dx += D W_ih          dW_ih += D^T x          dW_hh += D^T h          db += the sum of D's rows

D are the chunk's gate gradients, just written and still in the cache. Columns of x and h are packed into panels of
two vectors, so that a product over the chunk's rows reads both operands in order. Operations: 4 rows G H (I + H)
less dh's.
"""

from . import target
from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, WIDE, layout
from .parts import load_part, store_part
from .product import LINE
from .steps import state_before, step_parts
from .tiles import add, load, outer, prefetch, store, zeros

_BLOCK = 64  # rows summed in one go (see product.BLOCK): torch adds the weights' gradients step by step

ARGUMENTS = (
    "gradients",  # of this chunk
    *("T", "B", "t0", "count"),  # the chunk's steps
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides
    *("h", "h_time"),  # (T, B, H): address, stride of a step; the rows are contiguous
    "h0",  # (B, H) contiguous
    *("dx", "dx_time", "dx_row", "w_ih"),  # (T, B, I), 0: not wanted; W_ih packed for "x"
    "dx_add",  # 1: add to what is there
    *("dw_ih", "dw_hh"),  # (G H, I), (G H, H) contiguous; 0: not wanted
    "db",  # (slabs, blocks, slots, W): sums of the gate gradients
    "first_chunk",  # 1: write the sums; 0: add to them
    "panels",  # scratch for rows x (I or H, rounded up) elements
    "sums",  # scratch for rows x PANEL W elements
    *("I", "H"),
    *("slab_first", "slab_last"),  # slabs of dW and db
    *("steps", "marks", "reset_h"),  # as in `scan_backward`
)


def build(cell, size):
    shape = layout(cell, size, True)
    units, gradient_row = shape.slab_units, shape.gradient_row
    W = shape.lanes
    rows_of, chunk_of, marks_of = step_parts()
    multiply, write_x = gradient_product(shape, shape.x_slots), _write_x(shape, rows_of)
    into_ih = _into_weights(shape, shape.x_slots)
    into_hh = into_ih if shape.x_slots == shape.u_slots else _into_weights(shape, shape.u_slots)
    pack, pack_before = _pack_columns(shape, rows_of), _pack_before(shape, rows_of, marks_of)
    into_biases = _into_biases(shape)
    panel_weights = PANEL * W * len(shape.x_slots) * units

    @inner
    def gradients_of(
        gradients, T, B, t0, count, x, x_time, x_row, h, h_time, h0, dx, dx_time, dx_row, w_ih, dx_add, dw_ih, dw_hh,
        db, first_chunk, panels, sums, I, H, slab_first, slab_last, steps, marks, reset_h
    ):  # fmt: skip
        slabs = -(-H // units)
        low, rows = chunk_of(steps, t0, count, B)
        chunk = (steps, t0, count, T, B, low, rows)
        slab_bytes = size * gradient_row * rows
        if dx:
            for panel in range(-(-I // (PANEL * W))):
                column = PANEL * W * panel
                weights = w_ih + size * panel_weights * slabs * panel
                multiply(0, rows, rows, (gradients, slab_bytes, slabs, weights), sums)
                write_x(sums, chunk, (dx + size * column, dx_time, dx_row), I - column, dx_add)
        slab_range = (slab_first, slab_last)
        if dw_ih:
            into_biases(gradients, slab_bytes, rows, db, first_chunk, slab_range)
            pack((x, x_time, x_row), chunk, I, panels)
            into_ih(gradients, slab_bytes, rows, panels, dw_ih, I, H, first_chunk, slab_range)
            pack_before((h, h_time, h0, reset_h, marks), chunk, H, panels)
            into_hh(gradients, slab_bytes, rows, panels, dw_hh, H, H, first_chunk, slab_range)

    return gradients_of


def _write_x(shape, rows_of):
    size, width = shape.size, PANEL * shape.lanes

    @inner
    def write(sums, chunk, place, left, dx_add):
        """Rows of the sums to those of dx, `left` columns."""
        steps, t0, count, T, B, low, _ = chunk
        dx, dx_time, dx_row = place
        for t in range(t0, t0 + count):
            at, first, live, _ = rows_of(steps, t, T, B)
            for b in range(live):
                acc = load(zeros(1, PANEL, size), sums + size * width * (first - low + b), 0)
                row = (dx + size * (dx_time * at + dx_row * b), 0, 1, left)
                if dx_add:
                    acc = add(acc, load_part(acc, row))
                store_part(acc, row)

    return write


def _pack_columns(shape, rows_of):
    """The chunk's rows of a (T, B, N) operand as panels [panel][row][WIDE W], zero past N."""
    size, wide = shape.size, shape.wide

    @inner
    def pack(place, chunk, N, panels):
        steps, t0, count, T, B, low, rows = chunk
        a, a_time, a_row = place
        for panel in range(-(-N // wide)):
            column = panel * wide
            for t in range(t0, t0 + count):
                at, first, live, _ = rows_of(steps, t, T, B)
                source, target = a + size * (a_time * at + column), panels + size * wide * (rows * panel + first - low)
                for b in range(live):
                    part = load_part(zeros(1, WIDE, size), (source + size * a_row * b, 0, 1, N - column))
                    store(part, target + size * wide * b, 0)

    return pack


def _pack_before(shape, rows_of, marks_of):
    """The same of h before each step."""
    size, wide = shape.size, shape.wide
    find = state_before(size)

    @inner
    def pack(place, chunk, H, panels):
        steps, t0, count, T, B, low, rows = chunk
        h, h_time, h0, reset_h, marks = place
        for panel in range(-(-H // wide)):
            column = panel * wide
            for t in range(t0, t0 + count):
                at, _, live_before, _ = rows_of(steps, t - 1, T, B)
                _, first, live, marked = rows_of(steps, t, T, B)
                mark, states = marks_of(marks, first, marked), (h + size * h_time * at, H, h0, reset_h)
                target = panels + size * wide * (rows * panel + first - low)
                for b in range(live):
                    source = size * column + find(b, mark, live_before, states, H)
                    store(load_part(zeros(1, WIDE, size), (source, 0, 1, H - column)), target + size * wide * b, 0)

    return pack


def _into_weights(shape, slots):
    """dW (gates * H, N) (+)= D^T panels, for a range of slabs. A last panel of few columns has tiles half as wide."""
    size, W, blocks, units, row_slots = shape.size, shape.lanes, shape.blocks, shape.slab_units, shape.slots
    wide = shape.wide
    tile, narrow = _weights_tile(WIDE, shape), _weights_tile(1, shape)

    @inner
    def run(gradients, slab_bytes, rows, panels, dw, N, H, first_chunk, slab_range):
        for slab in range(slab_range[0], slab_range[1]):
            for column in range(0, N, wide):
                b = panels + size * rows * column
                for block in range(blocks):
                    unit = slab * units + block * W
                    for gate, slot in enumerate(slots):
                        a = gradients + slab_bytes * slab + size * (block * row_slots + slot) * W
                        place = (dw + size * ((gate * H + unit) * N + column), N, H - unit, N - column)
                        if N - column > W:
                            tile(a, rows, b, place, first_chunk)
                        else:
                            narrow(a, rows, b, place, first_chunk)

    return run


def _weights_tile(n, shape):
    """A function (a, rows, b, place, first_chunk): W units of a gate at a, times n vectors of a panel at b."""
    size, W, gradient_row = shape.size, shape.lanes, shape.gradient_row
    m = min(1 << (target.current().rows(n).bit_length() - 1), W)  # a divisor of W
    multiply, ask = _down_rows(m, n, shape), _ask_for(m, n, shape)

    @inner
    def run(a, rows, b, place, first_chunk):
        dw, N, units, columns = place
        for lane in range(0, min(units, W), m):
            here = (dw + size * N * lane, N, units - lane, columns)
            ask(here)
            acc = multiply(a + size * lane, gradient_row, rows, b)
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
    """A function (a, a_row, rows, b) -> (m lanes of D, n vectors): D's lanes times packed rows, summed."""
    size, wide = shape.size, shape.wide

    @inner
    def multiply(a, a_row, rows, b):
        total = zeros(m, n, size)
        for first in range(0, rows, _BLOCK):
            block = zeros(m, n, size)
            for row in range(first, min(first + _BLOCK, rows)):
                block = outer(block, a + size * a_row * row, 1, b + size * wide * row)
            total = add(total, block)
        return total

    return multiply


def _into_biases(shape):
    n, size = shape.blocks * shape.slots, shape.size
    gradient_row = shape.gradient_row

    @inner
    def run(gradients, slab_bytes, rows, db, first_chunk, slab_range):
        for slab in range(slab_range[0], slab_range[1]):
            source, place = gradients + slab_bytes * slab, db + size * gradient_row * slab
            total = zeros(1, n, size)
            for start in range(0, rows, _BLOCK):
                block = zeros(1, n, size)
                for row in range(start, min(start + _BLOCK, rows)):
                    block = add(block, load(block, source + size * gradient_row * row, 0))
                total = add(total, block)
            if not first_chunk:
                total = add(total, load(total, place, 0))
            store(total, place, 0)

    return run
