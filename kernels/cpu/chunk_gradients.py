"""Gradients of x, the weights and the biases from the gates' gradients of one chunk, as tile products.

    dx += D W_ih          dW_ih += D^T x          dW_hh += D^T h          db += the sum of D's rows

D are the chunk's gate gradients, just written and still in the cache. Columns of x and h are packed into panels of
two vectors, so that a product over the chunk's rows reads both operands in order. Operations: 4 rows G H (I + H)
less dh's.
"""

from .gradient_product import segments_of, wide_and_narrow
from .inner import inner
from .layout import PANEL, panel_start, wide_panels
from .operands import load_rows, pair_rows
from .parts import part_loader, part_storer
from .steps import by_row, state_before, step_parts
from .tiles import add, load, store, zeros
from .weight_gradients import into_biases, into_weights


def gradients_of_x(shape, multiply):
    """A function that adds a chunk's share of the rows of dx, or writes it. multiply: the `gradient_product`."""
    stored, W, narrow = shape.stored, shape.lanes, shape.narrow
    rows_of, _, _ = step_parts()
    start_of, wide_of, segments = inner(panel_start), inner(wide_panels), segments_of(shape, shape.x_slots)
    write_wide, write_narrow = wide_and_narrow(shape, lambda n: _write_x(shape, rows_of, n))

    @inner
    def run(gradients, slab_rows, w_ih, sums, place, where, own_rows):
        dx, dx_time, dx_row, dx_add = place
        _, _, _, _, _, _, I, H, _, _ = where
        wide = wide_of(I, W, narrow)
        for panel in range(-(-I // (PANEL * W))):
            operands = (gradients, slab_rows, H, w_ih)
            multiply(panel, wide, (own_rows[0], own_rows[1], slab_rows), operands, segments, sums)
            column = W * start_of(panel, wide)
            here = (dx + stored * column, dx_time, dx_row)
            if panel < wide:
                write_wide(sums, where, own_rows, here, I - column, dx_add)
            else:
                write_narrow(sums, where, own_rows, here, I - column, dx_add)

    return run


def gradients_of_weights(shape):
    """A function that adds a chunk's to a range of slabs of the weights' and biases' gradients, or writes them.

    slab_rows: how many a slab's gradients take; panels: scratch for the rows of x or h; paired: for those of the slabs'
    gradients, where terms are pairs of rows.
    """
    rows_of, _, marks_of = step_parts()
    multiply, x_slots, u_slots = into_weights(shape), shape.x_slots, shape.u_slots
    pack, pack_before = _pack_columns(shape, rows_of), _pack_before(shape, rows_of, marks_of)
    biases, pair, together = into_biases(shape), pair_rows(shape.size), shape.per_lane
    gradient_row, row_bytes = shape.gradient_row, shape.stored * shape.gradient_row
    term_bytes = row_bytes * together

    @inner
    def run(gradients, slab_rows, panels, paired, inputs, hs, outputs, where, first_chunk, slab_range):
        dw_ih, dw_hh, db_ih, db_hh = outputs
        _, _, _, _, _, _, I, H, _, rows = where
        terms, operands, slab_terms = -(-rows // together), gradients, slab_rows
        if db_ih:
            biases(gradients, row_bytes * slab_rows, rows, db_ih, db_hh, H, first_chunk, slab_range)
        if together > 1:
            operands, slab_terms = paired, terms
            for slab in range(slab_range[0], slab_range[1]):
                source, target = gradients + row_bytes * slab_rows * slab, paired + term_bytes * terms * slab
                pair(source, gradient_row, rows, gradient_row, target, gradient_row)
        pack(inputs, where, I, panels)
        multiply(operands, x_slots, term_bytes * slab_terms, terms, panels, dw_ih, I, H, first_chunk, slab_range)
        pack_before(hs, where, H, panels)
        multiply(operands, u_slots, term_bytes * slab_terms, terms, panels, dw_hh, H, H, first_chunk, slab_range)

    return run


def _write_x(shape, rows_of, n):
    size, stored, width = shape.size, shape.stored, n * shape.lanes
    load_part, store_part = part_loader(stored), part_storer(stored)

    @inner
    def write(sums, where, own_rows, place, left, dx_add):
        """Rows of the sums to those of dx, `left` columns."""
        (steps, _, t0, count, T, B, _, _, low, _), (dx, dx_time, dx_row) = where, place
        for t in range(t0, t0 + count):
            at, first, live, _ = rows_of(steps, t, T, B)
            for b in range(max(0, own_rows[0] - (first - low)), min(live, own_rows[1] - (first - low))):
                acc = load(zeros(1, n, size), sums + size * width * (first - low + b), 0)
                row = (dx + stored * (dx_time * at + dx_row * b), 0, 1, left)
                if dx_add:
                    acc = add(acc, load_part(acc, row))
                store_part(acc, row)

    return write


def _pack_columns(shape, rows_of):
    """The chunk's rows of a (T, B, N) operand as panels [panel][term][WIDE W], zero past N."""
    stored, put, step_of = shape.stored, _put_row(shape), by_row(rows_of)

    @inner
    def pack(place, where, N, panels):
        (steps, _, t0, count, T, B, _, _, low, rows), (a, a_time, a_row) = where, place
        before = 0
        for i in range(count):
            at, first, live, _ = rows_of(steps, step_of(steps, t0, count, T, B, i), T, B)
            for b in range(live):
                before = put(a + stored * (a_time * at + a_row * b), before, first - low + b, rows, N, panels)

    return pack


def _pack_before(shape, rows_of, marks_of):
    """The same of h before each step."""
    stored, put, step_of, find = shape.stored, _put_row(shape), by_row(rows_of), state_before(shape.stored)

    @inner
    def pack(place, where, H, panels):
        (steps, marks, t0, count, T, B, _, _, low, rows), (h, h_time, h0, reset_h) = where, place
        before = 0
        for i in range(count):
            t = step_of(steps, t0, count, T, B, i)
            at, _, live_before, _ = rows_of(steps, t - 1, T, B)
            _, first, live, marked = rows_of(steps, t, T, B)
            mark, states = marks_of(marks, first, marked), (h + stored * h_time * at, H, h0, reset_h)
            for b in range(live):
                before = put(find(b, mark, live_before, states, H), before, first - low + b, rows, H, panels)

    return pack


def _put_row(shape):
    """A function (source, before, row, rows, N, panels): row `row` of a chunk of N columns at source to the panels. The
    rows are put in their order; of a pair the first, `before`, waits for the second. Gives source."""
    size, stored, wide, W, together = shape.size, shape.stored, shape.wide, shape.lanes, shape.per_lane
    part = load_rows(size, stored)

    @inner
    def put(source, before, row, rows, N, panels):
        ends = row % together == together - 1
        if ends or row == rows - 1:
            first = before if ends and together > 1 else source
            terms, count = -(-rows // together), together if ends else 1
            target = panels + size * wide * (row // together)
            for column in range(0, -(-N // wide) * wide, W):
                place = first + stored * column, (source - first) // stored, count, N - column
                vector = part(zeros(1, 1, size), place)
                store(vector, target + size * (wide * terms * (column // wide) + column % wide), 0)
        return source

    return put
