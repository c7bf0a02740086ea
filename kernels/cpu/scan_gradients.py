"""Gradients of x, the weights and the biases from the gates' gradients of one chunk, as tile products.

    dx += D W_ih          dW_ih += D^T x          dW_hh += D^T h          db += the sum of D's rows

D are the chunk's gate gradients, just written and still in the cache. Columns of x and h are packed into panels of
two vectors, so that a product over the chunk's rows reads both operands in order. Operations: 4 rows G H (I + H)
less dh's.
"""

from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, WIDE, layout
from .parts import load_part, store_part
from .steps import state_before, step_parts
from .tiles import add, load, store, zeros
from .weight_gradients import into_biases, into_weights

ARGUMENTS = (
    "gradients",  # of this chunk
    *("T", "B", "t0", "count"),  # the chunk's steps
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides
    *("h", "h_time"),  # (T, B, H): address, stride of a step; the rows are contiguous
    "h0",  # (B, H) contiguous
    *("dx", "dx_time", "dx_row", "w_ih"),  # (T, B, I), 0: not wanted; W_ih packed for "x"
    "dx_add",  # 1: add to what is there
    *("dw_ih", "dw_hh"),  # (G H, I), (G H, H) contiguous; 0: not wanted
    *("db_ih", "db_hh"),  # (G H,) each; 0: not wanted
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
    into_ih = into_weights(shape, shape.x_slots)
    into_hh = into_ih if shape.x_slots == shape.u_slots else into_weights(shape, shape.u_slots)
    pack, pack_before = _pack_columns(shape, rows_of), _pack_before(shape, rows_of, marks_of)
    biases = into_biases(shape)
    panel_weights = PANEL * W * len(shape.x_slots) * units

    @inner
    def gradients_of(
        gradients, T, B, t0, count, x, x_time, x_row, h, h_time, h0, dx, dx_time, dx_row, w_ih, dx_add, dw_ih, dw_hh,
        db_ih, db_hh, first_chunk, panels, sums, I, H, slab_first, slab_last, steps, marks, reset_h
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
            if db_ih:
                biases(gradients, slab_bytes, rows, db_ih, db_hh, H, first_chunk, slab_range)
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
