"""The recurrence forward over time, for any cell: gates stay in registers between the product and the cell.

A chunk of whole time steps at a time, the input projections of all its rows are written into the gates' memory, then
the steps are taken. Per step and slab: a tile of h_{t-1} W_hh^T, the cell on its registers, the states stored. For
training the cell's saved values replace the pre-activations; all chunks are kept. For inference one chunk is used
again and again.

Operations: 2 T B G H (I + H). Bytes from outside the caches: x and y once; the weights once a step where they do not
fit.
"""

from ..cells import CELLS
from .forward_tiles import cell_op, copy_rows, project_tile, step_tile
from .inner import inner
from .layout import FEW_ROWS, back_and_forth, layout, terms
from .layout import steps as chunk_steps
from .product import by_rows

ARGUMENTS = (
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides in elements; the last stride is 1
    *("w_ih", "w_hh", "b_ih", "b_hh"),  # packed; of int8 weights each bias is followed by the columns' scales
    *("h0", "c0"),  # (B, H) contiguous, as stored; c0 0 without a second state
    *("y", "y_time", "y_row"),  # (T, B, H): address, strides
    *("h", "h_time", "h_row"),  # (T, B, H): where h is read back from; for inference y itself, for training kept apart
    *("c", "c_time"),  # (T, B, H) for training; (B, H) and 0 for inference: c0, c_1, ... in place; not bfloat16
    *("gates", "keep"),  # all chunks, keep 1; or room for one, keep 0
    *("T", "B", "I", "H"),
    *("first", "last"),  # rows to compute, on the cuts of B
    *("h_n", "c_n"),  # (B, H) contiguous, as stored: copies of h_T and, of bfloat16 alone, of c_T
)


def build(cell, size, save, stored, weight):
    """stored: bytes of an element of x, y and h, `size` or 2, bfloat16. weight: as in the Layout."""
    shape = layout(cell, size, save, stored, weight)
    n, units, has_c = shape.vectors, shape.slab_units, CELLS[cell].states == 2
    gate_row, panel, term = shape.gate_row, size * n * shape.lanes, weight * n * shape.lanes
    project = by_rows(lambda m: project_tile(m, shape), n)
    step = by_rows(lambda m: step_tile(m, shape, cell_op(cell, shape, save, size), size), n)
    steps, order, terms_of = inner(chunk_steps), inner(back_and_forth), inner(terms)
    copy, widen, narrow = (copy_rows(shape, *sizes) for sizes in ((stored, stored), (stored, size), (size, stored)))

    @inner
    def input_part(x, x_time, x_row, w_ih, b_ih, gates, t0, count, B, I, H, first, last):
        """Input pre-activations of `count` steps from t0, all slabs."""
        rows, slabs = count * B, -(-H // units)
        for slab in range(slabs):
            target = gates + size * gate_row * rows * slab
            bias = b_ih + panel * slab
            weights = (I, w_ih + term * terms_of(I, size, stored) * slab, bias, bias + panel * slabs)
            if B == 1:
                project(0, count, count, (x + stored * x_time * t0, x_time, target, *weights))
            elif x_time == B * x_row and last - first == B and B < FEW_ROWS:
                project(0, rows, rows, (x + stored * x_time * t0, x_row, target, *weights))
            else:
                for s in range(count):
                    source = x + stored * x_time * (t0 + s)
                    project(first, last, B, (source, x_row, target + size * gate_row * B * s, *weights))

    @inner
    def scan(
        x, x_time, x_row, w_ih, w_hh, b_ih, b_hh, h0, c0, y, y_time, y_row, h, h_time, h_row,
        c, c_time, gates, keep, T, B, I, H, first, last, h_n, c_n
    ):  # fmt: skip
        slabs, length = -(-H // units), steps(B)
        slab_weights = term * terms_of(H, size, stored)
        if has_c and stored != size:
            widen(c0, H, c, H, first, last)
            c0 = c
        for t0 in range(0, T, length):
            count = min(length, T - t0)
            chunk = gates + size * gate_row * slabs * B * t0 * keep
            input_part(x, x_time, x_row, w_ih, b_ih, chunk, t0, count, B, I, H, first, last)
            for t in range(t0, t0 + count):
                before, before_row = (h + stored * h_time * (t - 1), h_row) if t > 0 else (h0, H)
                c_before = c + size * c_time * (t - 1) if t > 0 else c0
                for turn in range(slabs):
                    slab, next_slab = order(turn, slabs, t), order(min(turn + 1, slabs - 1), slabs, t)
                    unit = units * slab
                    row = chunk + size * gate_row * B * (count * slab + t - t0)
                    following = w_hh + slab_weights * next_slab
                    bias = b_hh + panel * slab
                    weights = (w_hh + slab_weights * slab, following, bias, bias + panel * slabs)
                    outputs = (y + stored * (y_time * t + unit), y_row, h + stored * (h_time * t + unit), h_row)
                    states = (c_before + size * unit, c + size * (c_time * t + unit))
                    arguments = (before, before_row, unit, weights, row, *outputs, *states, H, H - unit)
                    step(first, last, B, arguments)
        copy(h + stored * h_time * (T - 1), h_row, h_n, H, first, last)
        if has_c and stored != size:
            narrow(c, H, c_n, H, first, last)

    return scan
