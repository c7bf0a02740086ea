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
from .crew import functions as crew_parts
from .forward_tiles import cell_op, copy_rows, gather_rows, project_tile, step_tile
from .inner import inner
from .layout import FEW_ROWS, back_and_forth, layout, terms
from .layout import steps as chunk_steps
from .product import by_rows
from .steps import step_parts

ARGUMENTS = (
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides in elements; the last stride is 1
    *("w_ih", "w_hh", "b_ih", "b_hh"),  # packed; a bias is followed by int8 weights' scales and sums of columns
    *("h0", "c0"),  # (B, H) contiguous; c0 0 without a second state
    *("y", "y_time", "y_row"),  # (T, B, H): address, strides
    *("h", "h_time", "h_row"),  # (T, B, H): where h is read back from; for inference y itself, for training kept apart
    *("c", "c_time"),  # (T, B, H) for training; (B, H) and 0 for inference: c0, c_1, ... in place; c is never bfloat16
    *("gates", "keep"),  # all chunks, keep 1; or room for one, keep 0
    *("T", "B", "I", "H"),
    *("first", "last"),  # rows to compute, on the cuts of B
    *("h_n", "c_n"),  # (B, H) contiguous: copies of the last states of rows that have steps; c_n unused for inference
    *("steps", "marks"),  # steps.py; 0 for a dense scan
    *("reset_h", "reset_c"),  # (B, H) contiguous: what marked rows start again from
    *("fresh_h", "fresh_c"),  # scratch (B, H), for a packed scan
    *("crew", "leads"),  # crew.py: threads that share the slabs of each step; 0 where this one takes them all
)


def build(cell, size, save, stored, weight):
    """stored: bytes of an element of x, y and h, `size` or 2, bfloat16. weight: as in the Layout."""
    shape = layout(cell, size, save, stored, weight)
    units, gate_row = shape.slab_units, shape.gate_row
    length_of, (rows_of, chunk_of, marks_of), (join, meet) = inner(chunk_steps), step_parts(), crew_parts()
    project, advance = input_part(shape, rows_of), take_step(cell, shape, save)
    copy_h, copy_c = copy_rows(shape, stored), copy_rows(shape, size)
    gather_h, gather_c = gather_rows(shape, stored), gather_rows(shape, size)
    has_c, keeps_c = CELLS[cell].states == 2, CELLS[cell].states == 2 and save

    @inner
    def scan(
        x, x_time, x_row, w_ih, w_hh, b_ih, b_hh, h0, c0, y, y_time, y_row, h, h_time, h_row, c, c_time, gates, keep,
        T, B, I, H, first, last, h_n, c_n, steps, marks, reset_h, reset_c, fresh_h, fresh_c, crew, leads
    ):  # fmt: skip
        slabs, length = -(-H // units), length_of(B)
        member, together = join(crew, leads) if crew else (0, 1)
        if together == 0:
            return
        before, before_row, c_before, live_before = h0, H, c0, 0
        for t0 in range(0, T, length):
            count = min(length, T - t0)
            low, rows = chunk_of(steps, t0, count, B)
            shared = not keep and B >= FEW_ROWS
            if shared:
                rows = count * B
            chunk = gates + size * gate_row * slabs * low * keep
            share = (slabs * member // together, slabs * (member + 1) // together)
            here = (steps, t0, count, low, rows, shared)
            project(x, x_time, x_row, w_ih, b_ih, chunk, here, B, I, H, first, last, share)
            for t in range(t0, t0 + count):
                at, row, live, marked = rows_of(steps, t, T, B)
                end = min(last, live)
                if marked or 0 < live_before < live:
                    mark = marks_of(marks, row, marked)
                    gather_h(first, end, mark, live_before, (before, before_row, h0, reset_h), fresh_h, H)
                    before, before_row = fresh_h, H
                    if has_c:
                        gather_c(first, end, mark, live_before, (c_before, H, c0, reset_c), fresh_c, H)
                        c_before = fresh_c
                place = chunk + size * gate_row * (B * (t - t0) if shared else row - low)
                outputs = (y + stored * y_time * at, y_row, h + stored * h_time * at, h_row)
                states = (c_before, c + size * c_time * at)
                given = (w_hh, b_hh), (before, before_row), (place, rows)
                advance(share, t, *given, outputs, states, first, end, B, H)
                before, before_row, c_before, live_before = outputs[2], h_row, states[1], live
                if crew:
                    together = meet(crew, member, together, t)
                    if together == 0:
                        return
                    share = (slabs * member // together, slabs * (member + 1) // together)
                if member == 0:
                    ended = max(first, rows_of(steps, t + 1, T, B)[2])
                    copy_h(before, h_row, h_n, H, ended, end)
                    if keeps_c:
                        copy_c(c_before, H, c_n, H, ended, end)

    return scan


def take_step(cell, shape, save):
    """A function that takes a step in a share of the slabs."""
    units, size, stored = shape.slab_units, shape.size, shape.stored
    panel, weight = size * shape.vectors * shape.lanes, shape.weight
    step = by_rows(lambda m: step_tile(m, shape, cell_op(cell, shape, save, size), size), shape.vectors)
    order, terms_of, gate_row = inner(back_and_forth), inner(terms), shape.gate_row

    @inner
    def run(share, t, weights, before, gates, outputs, states, first, last, B, H):
        """gates: the address of the step's first row in the first slab, and a slab's rows."""
        (w_hh, b_hh), (y, y_row, h, h_row), (c_before, c) = weights, outputs, states
        own, slabs, slab_weights = share[1] - share[0], -(-H // units), panel * terms_of(H, size, weight)
        for turn in range(own):
            slab, next_slab = share[0] + order(turn, own, t), share[0] + order(min(turn + 1, own - 1), own, t)
            unit, bias = units * slab, b_hh + panel * slab
            place = gates[0] + size * gate_row * gates[1] * slab
            packed = (w_hh + slab_weights * slab, w_hh + slab_weights * next_slab, bias, panel * slabs)
            here = (y + stored * unit, y_row, h + stored * unit, h_row, c_before + size * unit, c + size * unit)
            step(first, last, B, (*before, unit, packed, place, *here, H, H - unit))

    return run


def input_part(shape, rows_of):
    """A function that writes the input pre-activations of a chunk of steps, in a share of the slabs.

    Few rows, which are never split, are projected over the whole chunk where they follow each other in memory.
    """
    n, units, size, stored = shape.vectors, shape.slab_units, shape.size, shape.stored
    gate_row, panel, weight = shape.gate_row, size * n * shape.lanes, shape.weight
    project, terms_of = by_rows(lambda m: project_tile(m, shape), n), inner(terms)

    @inner
    def run(x, x_time, x_row, w_ih, b_ih, gates, chunk, B, I, H, first, last, share):
        steps, t0, count, low, rows, shared = chunk
        slabs = -(-H // units)
        for slab in range(share[0], share[1]):
            target, bias = gates + size * gate_row * rows * slab, b_ih + panel * slab
            weights = (I, w_ih + panel * terms_of(I, size, weight) * slab, bias, panel * slabs)
            if B == 1:
                project(0, rows, rows, (x + stored * x_time * low, x_time, target, *weights))
            elif B < FEW_ROWS and (steps or x_time == B * x_row):
                project(0, rows, rows, (x + stored * x_row * low, x_row, target, *weights))
            else:
                for t in range(t0, t0 + count):
                    at, row, live, _ = rows_of(steps, t, t + 1, B)
                    place = target + size * gate_row * (B * (t - t0) if shared else row - low)
                    project(first, min(last, live), B, (x + stored * x_time * at, x_row, place, *weights))

    return run
