"""Gradients of x, the weights and the biases from the gates' gradients of one chunk, as tile products.

    dx += D W_ih          dW_ih += D^T x          dW_hh += D^T h          db += the sum of D's rows

D are the chunk's gate gradients, just written and still in the cache. Columns of x and h are packed into panels of
two vectors, so that a product over the chunk's rows reads both operands in order. Operations: 4 rows G H (I + H)
less dh's.
"""

from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, WIDE, panel_start, wide_panels
from .parts import load_part, store_part
from .steps import state_before, step_parts
from .tiles import add, load, store, zeros
from .weight_gradients import into_biases, into_weights


def gradients_of_x(shape):
    """A function that adds a chunk's share of the rows of dx, or writes it."""
    size, W, narrow = shape.size, shape.lanes, shape.narrow
    rows_of, _, _ = step_parts()
    multiply, start_of, wide_of = gradient_product(shape, shape.x_slots), inner(panel_start), inner(wide_panels)
    write_wide, write_narrow = (_write_x(shape, rows_of, n) for n in (PANEL, narrow))

    @inner
    def run(gradients, w_ih, sums, place, where, own_rows):
        dx, dx_time, dx_row, dx_add = place
        _, _, _, _, _, _, I, H, _, rows = where
        wide = wide_of(I, W, narrow)
        for panel in range(-(-I // (PANEL * W))):
            multiply(panel, wide, (own_rows[0], own_rows[1], rows), (gradients, rows, H, w_ih), sums)
            column = W * start_of(panel, wide)
            here = (dx + size * column, dx_time, dx_row)
            if panel < wide:
                write_wide(sums, where, own_rows, here, I - column, dx_add)
            else:
                write_narrow(sums, where, own_rows, here, I - column, dx_add)

    return run


def gradients_of_weights(shape):
    """A function that adds a chunk's to a range of slabs of the weights' and biases' gradients, or writes them."""
    rows_of, _, marks_of = step_parts()
    into_ih = into_weights(shape, shape.x_slots)
    into_hh = into_ih if shape.x_slots == shape.u_slots else into_weights(shape, shape.u_slots)
    pack, pack_before = _pack_columns(shape, rows_of), _pack_before(shape, rows_of, marks_of)
    biases, row_bytes = into_biases(shape), shape.size * shape.gradient_row

    @inner
    def run(gradients, panels, inputs, hs, outputs, where, first_chunk, slab_range):
        (x, x_time, x_row), (h, h_time, h0, reset_h), (dw_ih, dw_hh, db_ih, db_hh) = inputs, hs, outputs
        _, _, _, _, _, _, I, H, _, rows = where
        slab_bytes = row_bytes * rows
        if db_ih:
            biases(gradients, slab_bytes, rows, db_ih, db_hh, H, first_chunk, slab_range)
        pack((x, x_time, x_row), where, I, panels)
        into_ih(gradients, slab_bytes, rows, panels, dw_ih, I, H, first_chunk, slab_range)
        pack_before((h, h_time, h0, reset_h), where, H, panels)
        into_hh(gradients, slab_bytes, rows, panels, dw_hh, H, H, first_chunk, slab_range)

    return run


def _write_x(shape, rows_of, n):
    size, width = shape.size, n * shape.lanes

    @inner
    def write(sums, where, own_rows, place, left, dx_add):
        """Rows of the sums to those of dx, `left` columns."""
        (steps, _, t0, count, T, B, _, _, low, _), (dx, dx_time, dx_row) = where, place
        for t in range(t0, t0 + count):
            at, first, live, _ = rows_of(steps, t, T, B)
            for b in range(max(0, own_rows[0] - (first - low)), min(live, own_rows[1] - (first - low))):
                acc = load(zeros(1, n, size), sums + size * width * (first - low + b), 0)
                row = (dx + size * (dx_time * at + dx_row * b), 0, 1, left)
                if dx_add:
                    acc = add(acc, load_part(acc, row))
                store_part(acc, row)

    return write


def _pack_columns(shape, rows_of):
    """The chunk's rows of a (T, B, N) operand as panels [panel][row][WIDE W], zero past N."""
    size, wide = shape.size, shape.wide

    @inner
    def pack(place, where, N, panels):
        (steps, _, t0, count, T, B, _, _, low, rows), (a, a_time, a_row) = where, place
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
    def pack(place, where, H, panels):
        (steps, marks, t0, count, T, B, _, _, low, rows), (h, h_time, h0, reset_h) = where, place
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
