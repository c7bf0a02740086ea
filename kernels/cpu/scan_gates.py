"""The saved gates of one chunk of steps, made anew from the states that were kept.

All states before the chunk's steps are known, so that nothing waits for a step: they are copied to follow each other,
and each slab is one product over all rows of the chunk, with the cell on its registers.

Operations: 2 rows G H (I + H), as forward, and up to rounding the same results. Bytes from outside the caches: x, the
states and the weights once a chunk.
"""

from ..cells import CELLS
from .forward_tiles import gather_rows
from .inner import inner
from .layout import layout
from .scan_forward import input_part, take_step
from .steps import step_parts

ARGUMENTS = (
    *("x", "x_time", "x_row"),  # (T, B, I): address, strides in elements; the last stride is 1
    *("w_ih", "w_hh", "b_ih", "b_hh"),  # packed for "forward"
    *("h", "h_time", "h0"),  # (T, B, H): address, stride of a step, the rows are contiguous; (B, H) contiguous
    *("c", "c_time", "c0"),
    "gates",  # of this chunk
    *("T", "B", "I", "H"),
    *("t0", "count"),  # the chunk's steps
    *("slab_first", "slab_last"),
    *("steps", "marks", "reset_h", "reset_c"),  # as in `scan_backward`
    "scratch",  # for 2 S rows x H elements
)


def build(cell, size, stored):
    """stored: bytes of an element of x and h."""
    shape, has_c = layout(cell, size, True, stored), CELLS[cell].states == 2
    rows_of, chunk_of, marks_of = step_parts()
    project, advance = input_part(shape, rows_of), take_step(cell, shape, True)
    gather_h, gather_c = gather_rows(shape, stored), gather_rows(shape, size)

    @inner
    def make(
        x, x_time, x_row, w_ih, w_hh, b_ih, b_hh, h, h_time, h0, c, c_time, c0, gates, T, B, I, H, t0, count,
        slab_first, slab_last, steps, marks, reset_h, reset_c, scratch
    ):  # fmt: skip
        low, rows = chunk_of(steps, t0, count, B)
        state = size * H * rows
        h_before, h_after, c_before, c_after = scratch, scratch + state, scratch + 2 * state, scratch + 3 * state
        for t in range(t0, t0 + count):
            at, _, live_before, _ = rows_of(steps, t - 1, T, B)
            _, row, live, marked = rows_of(steps, t, T, B)
            mark, place = marks_of(marks, row, marked), H * (row - low)
            before = (h + stored * h_time * at, H, h0, reset_h)
            gather_h(0, live, mark, live_before, before, h_before + stored * place, H)
            if has_c:
                before = (c + size * c_time * at, H, c0, reset_c)
                gather_c(0, live, mark, live_before, before, c_before + size * place, H)
        chunk, share = (steps, t0, count, low, rows, False), (slab_first, slab_last)
        project(x, x_time, x_row, w_ih, b_ih, gates, chunk, B, I, H, 0, B, share)
        outputs, states = (h_after, H, h_after, H), (c_before, c_after)
        advance(share, 0, (w_hh, b_hh), (h_before, H), (gates, rows), outputs, states, 0, rows, rows, H)

    return make
