"""One time step of one layer in one direction: slab by slab and a few rows at a time, the input projection, then the
cell.

All that stays the same from call to call lies in memory, the plan, from which the kernel also knows whether the weights
still are those that were packed. Threads share the slabs, each with a plan of its own. Operations: 2 B G H (I + H).
Bytes: the weights.
"""

from . import fingerprint
from .forward_tiles import cell_op, project_tile, row_copier, step_tile
from .inner import inner
from .layout import back_and_forth, layout, terms
from .memory import integers, put, scratch
from .product import by_rows

ARGUMENTS = (
    "plan",  # address of integers, in the order of PLAN
    *("x", "h", "c"),  # (B, I), (B, H) contiguous; c 0 without a second state
    *("y", "h_n", "c_n"),  # (B, H) contiguous: y is not h, h_n may be y or, for all slabs at once, h; c_n may be c
)
PLAN = (
    *("contents", "tensors", "count"),  # the hash of the weights that were packed, and what it is made from
    *("w_ih", "w_hh", "b_ih", "b_hh"),  # packed
    *("x_row", "B", "I", "H"),  # x_row: stride of x's rows in elements
    *("begin", "end"),  # slabs
    "passes",  # how often the weights have been read, which the kernel counts
)


def build(cell, size, stored, weight):
    """A function that returns 1, or 0 where the weights' contents have changed and nothing was done. stored: bytes of
    an element of x, h and c, `size` or 2, bfloat16. weight: as in the Layout."""
    shape = layout(cell, size, False, stored, weight)
    n, units = shape.vectors, shape.slab_units
    gate_row, panel = shape.gate_row, size * n * shape.lanes
    project = by_rows(lambda m: project_tile(m, shape), n)
    advance = by_rows(lambda m: step_tile(m, shape, cell_op(cell, shape, False, stored), stored), n)
    copy_row, contents_of, terms_of = row_copier(shape, stored), fingerprint.build(stored), inner(terms)
    together, length = shape.step_rows, len(PLAN)
    room = size * gate_row * together
    order, last_place = inner(back_and_forth), 8 * (length - 1)

    @inner
    def step(plan, x, h, c, y, h_n, c_n):
        contents, tensors, count, w_ih, w_hh, b_ih, b_hh, x_row, B, I, H, begin, end, passes = integers(plan, length)
        if contents_of(tensors, count) != contents:
            return 0
        put(plan + last_place, passes + 1)
        gates, slabs = scratch(room), -(-H // units)
        for turn in range(end - begin):
            slab = begin + order(turn, end - begin, passes)
            unit = units * slab
            bias_x, bias_h = b_ih + panel * slab, b_hh + panel * slab
            inputs = (I, w_ih + panel * terms_of(I, size, weight) * slab, bias_x, panel * slabs)
            recurrent = w_hh + panel * terms_of(H, size, weight) * slab
            weights, out, at = (recurrent, recurrent, bias_h, panel * slabs), y + stored * unit, stored * unit
            states = (out, H, out, H, c + at, c_n + at, H, H - unit)
            for first in range(0, B, together):
                last, here = min(first + together, B), gates - size * gate_row * first
                project(first, last, B, (x, x_row, here, *inputs))
                advance(first, last, B, (h, H, unit, weights, here, *states))
        if h_n != y:
            unit = units * begin
            for row in range(B):
                place = stored * (H * row + unit)
                copy_row(y + place, h_n + place, min(units * end, H) - unit)
        return 1

    return step
