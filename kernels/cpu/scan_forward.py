"""The recurrence forward over time, for any cell: gates stay in registers between the product and the cell.

A chunk of whole time steps at a time, the input projections of all its rows are written into the gates' memory, then
the steps are taken. Per step and slab: a tile of h_{t-1} W_hh^T, the cell on its registers, the states stored. For
training the cell's saved values replace the pre-activations; all chunks are kept. For inference one chunk is used
again and again: threads, each with rows of its own, may be at different chunks, so that every step has B rows there,
live or not. A row whose state before a step is not its last one, because it begins now or starts again (steps.py),
has all rows of the step copied: B H elements beside 2 B G H H operations.

Operations: 2 T B G H (I + H). Bytes from outside the caches: x and y once; the weights once a step where they do not
fit.
"""

from ..cells import CELLS
from .forward_tiles import cell_op, copy_rows, gather_rows, project_tile, step_tile
from .inner import inner
from .layout import FEW_ROWS, back_and_forth, layout
from .layout import steps as chunk_steps
from .product import by_rows
from .steps import step_parts

ARGUMENTS = (
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides in elements; the last stride is 1
    *("w_ih", "w_hh", "b_ih", "b_hh"),  # packed
    *("h0", "c0"),  # (B, H) contiguous; c0 0 without a second state
    *("y", "y_time", "y_row"),  # (T, B, H): address, strides
    *("h", "h_time", "h_row"),  # (T, B, H): where h is read back from; for inference y itself, for training kept apart
    *("c", "c_time"),  # (T, B, H) for training; (B, H) and 0 for inference: c0, c_1, ... in place
    *("gates", "keep"),  # all chunks, keep 1; or room for one, keep 0
    *("T", "B", "I", "H"),
    *("first", "last"),  # rows to compute, on the cuts of B
    *("h_n", "c_n"),  # (B, H) contiguous: copies of the last states of rows that have steps; c_n unused for inference
    *("steps", "marks"),  # steps.py; 0 for a dense scan
    *("reset_h", "reset_c"),  # (B, H) contiguous: what marked rows start again from
    *("fresh_h", "fresh_c"),  # scratch (B, H), for a packed scan
)


def build(cell, size, save):
    shape = layout(cell, size, save)
    units, gate_row, panel = shape.slab_units, shape.gate_row, size * shape.vectors * shape.lanes
    step = by_rows(lambda m: step_tile(m, shape, size, cell_op(cell, shape, save)), shape.vectors)
    length_of, order = inner(chunk_steps), inner(back_and_forth)
    rows_of, chunk_of, marks_of = step_parts()
    project = input_part(shape, size, rows_of)
    copy, gather = copy_rows(size, shape.lanes), gather_rows(size, shape.lanes)
    has_c, keeps_c = CELLS[cell].states == 2, CELLS[cell].states == 2 and save

    @inner
    def scan(
        x, x_time, x_row, w_ih, w_hh, b_ih, b_hh, h0, c0, y, y_time, y_row, h, h_time, h_row,
        c, c_time, gates, keep, T, B, I, H, first, last, h_n, c_n, steps, marks, reset_h, reset_c, fresh_h, fresh_c
    ):  # fmt: skip
        slabs = -(-H // units)
        length = length_of(B)
        before, before_row, c_before, live_before = h0, H, c0, 0
        for t0 in range(0, T, length):
            count = min(length, T - t0)
            low, rows = chunk_of(steps, t0, count, B)
            shared = not keep and B >= FEW_ROWS
            if shared:
                rows = count * B
            chunk = gates + size * gate_row * slabs * low * keep
            where = (steps, t0, count, low, rows, shared)
            project(x, x_time, x_row, w_ih, b_ih, chunk, where, B, I, 0, slabs, first, last)
            for t in range(t0, t0 + count):
                at, row, live, marked = rows_of(steps, t, T, B)
                end = min(last, live)
                if marked or 0 < live_before < live:
                    mark = marks_of(marks, row, marked)
                    gather(first, end, mark, live_before, (before, before_row, h0, reset_h), fresh_h, H)
                    before, before_row = fresh_h, H
                    if has_c:
                        gather(first, end, mark, live_before, (c_before, H, c0, reset_c), fresh_c, H)
                        c_before = fresh_c
                h_next, c_next = h + size * h_time * at, c + size * c_time * at
                for turn in range(slabs):
                    slab, next_slab = order(turn, slabs, t), order(min(turn + 1, slabs - 1), slabs, t)
                    unit = size * units * slab
                    place = chunk + size * gate_row * (rows * slab + (B * (t - t0) if shared else row - low))
                    weights = (w_hh + panel * H * slab, w_hh + panel * H * next_slab, b_hh + panel * slab)
                    outputs = (y + size * y_time * at + unit, y_row, h_next + unit, h_row)
                    states = (c_before + unit, c_next + unit)
                    arguments = (before, before_row, unit, *weights, place, *outputs, *states, H, H - units * slab)
                    step(first, end, B, arguments)
                before, before_row, c_before, live_before = h_next, h_row, c_next, live
                ended = max(first, rows_of(steps, t + 1, T, B)[2])
                copy(before, h_row, h_n, H, ended, end)
                if keeps_c:
                    copy(c_before, H, c_n, H, ended, end)

    return scan


def input_part(shape, size, rows_of):
    """A function that writes the input pre-activations of a chunk of steps, of a range of slabs.

    Few rows, which are never split, are projected over the whole chunk where they follow each other in memory.
    """
    n, gate_row, panel = shape.vectors, shape.gate_row, size * shape.vectors * shape.lanes
    project = by_rows(lambda m: project_tile(m, shape, size), n)

    @inner
    def run(x, x_time, x_row, w_ih, b_ih, gates, chunk, B, I, slab_first, slab_last, first, last):
        steps, t0, count, low, rows, shared = chunk
        for slab in range(slab_first, slab_last):
            target = gates + size * gate_row * rows * slab
            weights = (I, w_ih + panel * I * slab, b_ih + panel * slab)
            if B == 1:
                project(0, rows, rows, (x + size * x_time * low, x_time, target, *weights))
            elif B < FEW_ROWS and (steps or x_time == B * x_row):
                project(0, rows, rows, (x + size * x_row * low, x_row, target, *weights))
            else:
                for t in range(t0, t0 + count):
                    at, row, live, _ = rows_of(steps, t, t + 1, B)
                    place = target + size * gate_row * (B * (t - t0) if shared else row - low)
                    project(first, min(last, live), B, (x + size * x_time * at, x_row, place, *weights))

    return run
