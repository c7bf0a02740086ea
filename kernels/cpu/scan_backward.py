"""The recurrence backward over the steps of one chunk, for any cell: the gates' gradients, and the states' carried on.

Per step and panel of 4 W units: the next step's gate gradients times W_hh, the cell's backward on the sums, its
gradients written to the chunk's gradient memory, which is then the ready operand of `scan_gradients`. A row that ended
before the next step has nothing from there; what reaches the state of a row before its first step, or before one that
it starts again with, goes to the gradient of what that state was.

Operations: 2 T B G H H.
"""

from ..cells import CELLS
from .crew import functions as crew_parts
from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, layout
from .memory import integers
from .parts import load_part, store_part
from .primitives import on_vectors
from .steps import MARK, state_before, step_parts
from .tiles import add, load, tile_op, zeros
from .vector import select

ARGUMENTS = (
    *("dy", "dy_time", "dy_row"),  # (T, B, H): address, strides
    "dy_last",  # (B, H) contiguous: dy of each row's last step with the gradient of its last h in it
    *("h", "h_time"),  # (T, B, H): address, stride of a step; the rows are contiguous
    *("h0", "c0"),  # (B, H) contiguous
    *("c", "c_time"),  # (T, B, H): address, stride of a step
    "gates",  # the saved values of this chunk
    "w_hh",  # packed for "h"
    "direct_h",  # (B, H) contiguous, in place: the gradient of h that is carried over a step past the product
    "dc",  # (B, H) contiguous, in place: of c_T, then, with a row's first step, of c_0
    "dh0",  # (B, H) contiguous: a row is written with its first step
    "gradients",  # of this chunk
    *("later", "later_rows"),  # of the step after it, in a chunk of `later_rows` rows
    "sums",  # scratch for B x PANEL W elements, for each member of a crew
    *("T", "B", "H"),
    *("t0", "count"),  # the chunk's steps
    *("first", "last"),  # rows, on the cuts of B
    *("steps", "marks"),  # steps.py; 0 for a dense scan
    *("reset_h", "reset_c"),  # (B, H) contiguous: what marked rows start again from
    *("dreset_h", "dreset_c"),  # (B, H) contiguous: added to
    *("crew", "leads"),  # crew.py: threads that share the panels of each step; 0 where this one takes them all
)


def build(cell, size):
    shape = layout(cell, size, True)
    W, units, gate_row, gradient_row = shape.lanes, shape.slab_units, shape.gate_row, shape.gradient_row
    arrive, back = _arrive(shape, CELLS[cell].states == 2), _step(shape, _cell_op(cell, shape))
    (rows_of, chunk_of, marks_of), (join, meet) = step_parts(), crew_parts()
    blocks = shape.blocks
    panel_weights = PANEL * W * len(shape.u_slots) * units  # elements a slab

    @inner
    def scan(
        dy, dy_time, dy_row, dy_last, h, h_time, h0, c0, c, c_time, gates, w_hh, direct_h, dc, dh0, gradients, later,
        later_rows, sums, T, B, H, t0, count, first, last, steps, marks, reset_h, reset_c, dreset_h, dreset_c,
        crew, leads
    ):  # fmt: skip
        slabs, panels = -(-H // units), -(-H // (PANEL * W))
        member, together = join(crew, leads) if crew else (0, 1)
        if together == 0:
            return
        sums += size * PANEL * W * B * member
        low, rows = chunk_of(steps, t0, count, B)
        carried = (sums, direct_h, dc, dh0, dreset_h, dreset_c)
        _, row, live_later, marked = rows_of(steps, t0 + count, T, B)
        mark_later = marks_of(marks, row, marked)
        for t in range(t0 + count - 1, t0 - 2 if t0 == 0 else t0 - 1, -1):  # to step -1: what arrives at h_0 and c_0
            at, row, live, marked = rows_of(steps, t, T, B)
            at_before, _, live_before, _ = rows_of(steps, t - 1, T, B)
            mark = marks_of(marks, row, marked)
            for panel in range(panels * member // together, panels * (member + 1) // together):
                unit = size * PANEL * W * panel
                left = H - PANEL * W * panel
                slab = PANEL * panel // blocks
                operands = (later, size * gradient_row * later_rows, slabs, w_hh + size * panel_weights * slabs * panel)
                arrive(first, last, B, (live, live_later, mark_later), operands, carried, unit, H, left)
                saved = (gates + size * gate_row * (rows * slab + row - low), size * gate_row * rows)
                out = (gradients + size * gradient_row * (rows * slab + row - low), size * gradient_row * rows)
                upstream = (dy + size * dy_time * at, dy_row, dy_last, live_later, sums)
                h_before = (h + size * h_time * at_before, H, h0, reset_h)
                c_before = (c + size * c_time * at_before, H, c0, reset_c)
                afters = (h + size * h_time * at, c + size * c_time * at)
                where = (mark, live_before, unit, H, left)
                back(first, min(last, live), upstream, saved, out, (h_before, c_before), afters, (direct_h, dc), where)
            later, later_rows = gradients + size * gradient_row * (row - low), rows
            live_later, mark_later = live, mark
            if crew:
                together = meet(crew, member, together, t0 + count - 1 - t)
                if together == 0:
                    return

    return scan


def _arrive(shape, has_c):
    """A function that takes a panel of the gradients of the states before the step after, through the product and past
    it, to where they belong: to `sums` for the rows that had the states from this step; to the reset states for marked
    rows, which leaves nothing to the others; to the initial ones for rows that began there."""
    size, width, has_direct_h = shape.size, PANEL * shape.lanes, shape.has_direct_h
    multiply, into_h0, move = gradient_product(shape, shape.u_slots), _into_h0(shape), _move(size)

    @inner
    def arrive(first, last, B, rows, operands, carried, unit, H, left):
        live, live_later, mark = rows
        sums, direct_h, dc, dh0, dreset_h, dreset_c = carried
        end = min(last, live_later)
        multiply(first, end, B, operands, sums)
        if mark:
            for row in range(first, end):
                if integers(mark + MARK * row, 1)[0]:
                    place = unit + size * H * row
                    move(sums + size * width * row, dreset_h + place, left)
                    if has_direct_h:
                        move(direct_h + place, dreset_h + place, left)
                    if has_c:
                        move(dc + place, dreset_c + place, left)
        into_h0(max(first, live), end, (sums, direct_h + unit, dh0 + unit, H, left))

    return arrive


def _move(size):
    """A function (source, target, left) that adds `left` elements to the target, at most a panel, and zeros them."""

    @inner
    def move(source, target, left):
        zero = zeros(1, PANEL, size)
        there, here = (target, 0, 1, left), (source, 0, 1, left)
        store_part(add(load_part(zero, there), load_part(zero, here)), there)
        store_part(zero, here)

    return move


def _step(shape, cell_op):
    size, width, gate_row, gradient_row = shape.size, PANEL * shape.lanes, shape.gate_row, shape.gradient_row
    find = state_before(size)

    @inner
    def step(first, last, upstream, saved, out, befores, afters, carried, where):
        dy, dy_row, dy_last, live_later, sums = upstream
        mark, live_before, unit, H, left = where
        for row in range(first, last):
            place = unit + size * H * row
            acc, d = zeros(1, PANEL, size), dy_last + place
            if row < live_later:
                acc, d = load(acc, sums + size * width * row, 0), dy + unit + size * dy_row * row
            h_before = unit + find(row, mark, live_before, befores[0], H)
            c_before = unit + find(row, mark, live_before, befores[1], H)
            memory = (saved[0] + size * gate_row * row, saved[1], out[0] + size * gradient_row * row, out[1])
            states = (h_before, c_before, afters[0] + place, afters[1] + place)
            cell_op(acc, (*memory, d, *states, carried[0] + place, carried[1] + place, left))

    return step


def _into_h0(shape):
    size, width, has_direct_h = shape.size, PANEL * shape.lanes, shape.has_direct_h

    @inner
    def write(first, last, arguments):
        sums, direct_h, dh0, H, left = arguments
        for row in range(first, last):
            acc = load(zeros(1, PANEL, size), sums + size * width * row, 0)
            if has_direct_h:
                acc = add(acc, load_part(acc, (direct_h + size * H * row, 0, 1, left)))
            store_part(acc, (dh0 + size * H * row, 0, 1, left))

    return write


def _cell_op(name, shape):
    """The cell's backward on a row of gradients of h that came through the product."""
    cell = CELLS[name]
    _, backward = on_vectors(name)
    size, W = shape.size, shape.lanes

    def op(frame):
        saved, saved_slab, out, out_slab, d, h, c_before, h_next, c, direct_h, dc, left = frame.integers
        for j in range(PANEL):
            slab, block = divmod(j, shape.blocks)
            inside, offset = frame.below(left - j * W), j * W * size
            exists = frame.below((left - slab * shape.slab_units) * W)  # all lanes, or none past the last slab
            source = saved + saved_slab * slab + block * shape.width * W * size
            values = [frame.load(source + v * W * size, exists) for v in range(cell.saved)]
            ds = [frame.tile[0][j] + frame.load(d + offset, inside)]
            if shape.has_direct_h:
                ds[0] = ds[0] + frame.load(direct_h + offset, inside)
            s, s_next = [frame.load(h + offset, inside)], [frame.load(h_next + offset, inside)]
            if cell.states == 2:
                ds.append(frame.load(dc + offset, inside))
                s.append(frame.load(c_before + offset, inside))
                s_next.append(frame.load(c + offset, inside))
            dx, du, direct = backward(ds, values, s, s_next)
            target = out + out_slab * slab + block * shape.slots * W * size
            for slot, value in enumerate(dict.fromkeys((*dx, *du))):  # past H: zero, not inf times a zero weight
                frame.store(select(inside, value, 0.0), target + slot * W * size, exists)
            for address, value in zip((direct_h, dc), direct):
                if value is not None:
                    frame.store(value, address + offset, inside)

    return tile_op(op)
