"""The backward of a scan: chunk by chunk from the last one, the recurrence over its steps (step_gradients.py), then,
while the chunk's gate gradients are in the cache, the gradients of x and of the weights (chunk_gradients.py).

A crew shares the panels of every step or, where units are few, the rows; then, of each chunk, the rows of dx and the
slabs of the weights' gradients. Two chunks' gate gradients are kept: who is done with a chunk may begin the next one,
whose steps read the first step of the one before, and none can be two chunks ahead, since all meet at the end of a
chunk's steps.

Operations: 4 T B G H (I + H). Bytes from outside the caches: x, the states, the gates, dy and dx once; the weights'
gradients once a chunk where they do not fit.
"""

from . import target
from .chunk_gradients import gradients_of_weights, gradients_of_x
from .crew import functions as crew_parts
from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, layout, row_scratch, wide_panels
from .layout import steps as chunk_steps
from .step_gradients import step_gradients
from .steps import step_parts

ARGUMENTS = (
    *("dy", "dy_time", "dy_row"),  # (T, B, H): address, strides in elements; the last stride is 1
    "dy_last",  # (B, H) contiguous: dy of each row's last step with the gradient of its last h in it
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides
    *("h", "h_time"),  # (T, B, H): address, stride of a step; the rows are contiguous
    *("h0", "c0"),  # (B, H) contiguous
    *("c", "c_time"),  # (T, B, H): address, stride of a step
    *("gates", "all_chunks"),  # the saved values, of all chunks, 1, or of the one that is asked for, 0
    *("w_hh", "w_ih"),  # packed for "h" and "x"
    "direct_h",  # (B, H) contiguous, in place: the gradient of h that is carried over a step past the product
    "dc",  # (B, H) contiguous, in place: of c_T, then, with a row's first step, of c_0
    "dh0",  # (B, H) contiguous: a row is written with its first step
    *("dx", "dx_time", "dx_row"),  # (T, B, I); 0: not wanted
    "dx_add",  # 1: add to what is there
    *("dw_ih", "dw_hh"),  # (G H, I), (G H, H) contiguous; 0: not wanted
    *("db_ih", "db_hh"),  # (G H,) each; 0: not wanted
    "gradients",  # scratch for the gate gradients of two chunks, as it is from one call to the next
    "slab_rows",  # rows that a slab of them takes, of a single chunk; 0: those of the chunk
    *("sums", "packed", "paired"),  # scratch of each member of a crew, one after another (layout.row_scratch)
    *("T", "B", "I", "H"),
    *("first_chunk", "last_chunk"),  # the chunks to take, from last_chunk - 1 down
    *("steps", "marks"),  # steps.py; 0 for a dense scan
    *("reset_h", "reset_c"),  # (B, H) contiguous: what marked rows start again from
    *("dreset_h", "dreset_c"),  # (B, H) contiguous: added to
    "by_rows",  # 1: a crew shares the rows of the steps; 0: the panels
    *("crew", "leads"),  # crew.py; 0 where this thread does all
)


def build(cell, size, stored):
    """stored: bytes of an element of x, h and dy, `size` or 2, bfloat16, to which the gates' gradients are rounded."""
    shape = layout(cell, size, True, stored)
    units, tile, W, narrow = shape.slab_units, target.current().rows(PANEL), shape.lanes, shape.narrow
    row_bytes, gate_row = stored * shape.gradient_row, size * shape.gate_row
    (rows_of, chunk_of, _), (join, meet), length_of = step_parts(), crew_parts(), inner(chunk_steps)
    multiply, into_weights = gradient_product(shape), gradients_of_weights(shape)
    take_step, into_x = step_gradients(cell, shape, multiply), gradients_of_x(shape, multiply)
    wide_of, share_of, scratch_of = inner(wide_panels), inner(_share_of), inner(row_scratch(shape))

    @inner
    def scan(
        dy, dy_time, dy_row, dy_last, x, x_time, x_row, h, h_time, h0, c0, c, c_time, gates, all_chunks, w_hh, w_ih,
        direct_h, dc, dh0, dx, dx_time, dx_row, dx_add, dw_ih, dw_hh, db_ih, db_hh, gradients, slab_rows, sums, packed,
        paired, T, B, I, H, first_chunk, last_chunk, steps, marks, reset_h, reset_c, dreset_h, dreset_c, by_rows, crew,
        leads
    ):  # fmt: skip
        member, together = join(crew, leads) if crew else (0, 1)
        if together == 0:
            return
        slabs, length, meetings = -(-H // units), min(T, length_of(B)), 0
        panels, wide = -(-H // (PANEL * W)), wide_of(H, W, narrow)
        of_sums, of_packed, of_paired = scratch_of(length * B, I, H)
        sums += size * of_sums * member
        packed += size * of_packed * member
        paired += size * of_paired * member
        hs, carried = (h, h_time, h0, reset_h), (direct_h, dc, dh0, dreset_h, dreset_c)
        places = (dy, dy_time, dy_row, dy_last), hs, (c, c_time, c0, reset_c), carried
        for chunk in range(last_chunk - 1, first_chunk - 1, -1):
            t0 = length * chunk
            end = min(t0 + length, T)
            low, rows = chunk_of(steps, t0, end - t0, B)
            parity = row_bytes * slabs * length * B * (chunk % 2)
            here, here_rows, later, later_rows = gradients + parity, slab_rows or rows, 0, 0
            if end < T:
                later_low, later_rows = chunk_of(steps, end, min(length, T - end), B)
                later = gradients + row_bytes * slabs * length * B - parity
                later += row_bytes * (rows_of(steps, end, T, B)[1] - later_low)
            saved = gates + gate_row * slabs * low * all_chunks
            stop = t0 - 1 if t0 else -2  # to step -1: what arrives at h_0 and c_0
            for t in range(end - 1, stop, -1):
                own_rows = share_of(B, tile, member, together) if by_rows else (0, B)
                share = (0, panels) if by_rows else share_of(panels, 1, member, together)
                scratch = (later, later_rows, w_hh, sums, saved, rows, here, here_rows, low)
                take_step(t, share, own_rows, wide, (steps, marks, T, B, H), scratch, places)
                later, later_rows = here + row_bytes * (rows_of(steps, t, T, B)[1] - low), here_rows
                if crew and (not by_rows or t == stop + 1):
                    together = meet(crew, member, together, meetings)
                    meetings += 1
                    if together == 0:
                        return
            where = (steps, marks, t0, end - t0, T, B, I, H, low, rows)
            if dx:
                own_rows = share_of(rows, tile, member, together)
                into_x(here, here_rows, w_ih, sums, (dx, dx_time, dx_row, dx_add), where, own_rows)
            if dw_ih:
                share, outputs = share_of(slabs, 1, member, together), (dw_ih, dw_hh, db_ih, db_hh)
                into_weights(here, here_rows, packed, paired, (x, x_time, x_row), hs, outputs, where, end == T, share)

    return scan


def _share_of(count, tile, member, together):
    """A member's part of `count` things, in whole tiles but for the last."""
    first, last = count // tile * member // together, count // tile * (member + 1) // together
    return tile * first, count if member == together - 1 else tile * last
