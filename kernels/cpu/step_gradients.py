"""A step of the recurrence backward, for any cell: the gates' gradients, and the states' carried on.

Panel by panel of units: the next step's gate gradients times W_hh, the cell's backward on the sums, its gradients
written to the chunk's gradient memory, which is then the ready operand of the products of the chunk. A row that ended
before the next step has nothing from there; what reaches the state of a row before its first step, or before one that
it starts again with, goes to the gradient of what that state was.

Operations: 2 B G H H a step.
"""

from ..cells import CELLS
from .gradient_product import segments_of, wide_and_narrow
from .inner import inner
from .layout import panel_start
from .memory import integers
from .parts import load_part, store_part
from .primitives import on_vectors
from .steps import MARK, state_before, step_parts
from .tiles import add, load, tile_op, zeros
from .vector import select


def step_gradients(cell, shape, multiply):
    """A function that takes step t back in a share of the panels and of the rows. multiply: the `gradient_product`;
    wide: of the panels, as in layout.py; places: the arguments of `scan_backward` by what they are about."""
    segments = segments_of(shape, shape.u_slots)
    size, stored, W, blocks = shape.size, shape.stored, shape.lanes, shape.blocks
    gate_row, gradient_row = size * shape.gate_row, stored * shape.gradient_row
    (rows_of, _, marks_of), start_of = step_parts(), inner(panel_start)
    arrive_wide, arrive_narrow = wide_and_narrow(shape, lambda n: _arrive(shape, n, CELLS[cell].states == 2))
    back_wide, back_narrow = wide_and_narrow(shape, lambda n: _step(shape, n, _cell_op(cell, shape, n)))

    @inner
    def run(t, share, own_rows, wide, where, memory, places):
        (first, last), (steps, marks, T, B, H) = own_rows, where
        later, later_rows, w_hh, sums, saved, saved_rows, here, here_rows, low = memory
        (dy, dy_time, dy_row, dy_last), (h, h_time, h0, reset_h), (c, c_time, c0, reset_c), carried = places
        direct_h, dc, _, _, _ = carried
        at, row, live, marked = rows_of(steps, t, T, B)
        at_before, _, live_before, _ = rows_of(steps, t - 1, T, B)
        _, row_later, live_later, marked_later = rows_of(steps, t + 1, T, B)
        mark, mark_later = marks_of(marks, row, marked), marks_of(marks, row_later, marked_later)
        upstream = (dy + stored * dy_time * at, dy_row, dy_last, live_later, sums)
        befores = (h + stored * h_time * at_before, H, h0, reset_h), (c + size * c_time * at_before, H, c0, reset_c)
        afters = (h + stored * h_time * at, c + size * c_time * at)
        own_saved, own_out = saved + gate_row * (row - low), here + gradient_row * (row - low)
        saved_slab, out_slab = gate_row * saved_rows, gradient_row * here_rows
        for panel in range(share[0], share[1]):
            start = start_of(panel, wide)
            slab, unit, left = start // blocks, W * start, H - W * start
            multiply(panel, wide, (first, min(last, live_later), B), (later, later_rows, H, w_hh), segments, sums)
            memories = (own_saved + saved_slab * slab, saved_slab), (own_out + out_slab * slab, out_slab)
            lives, edge = (live, live_later, mark_later), (mark, live_before, unit, H, left)
            if panel < wide:
                arrive_wide(first, last, lives, sums, carried, unit, H, left)
                back_wide(first, min(last, live), upstream, memories, befores, afters, (direct_h, dc), edge)
            else:
                arrive_narrow(first, last, lives, sums, carried, unit, H, left)
                back_narrow(first, min(last, live), upstream, memories, befores, afters, (direct_h, dc), edge)

    return run


def _arrive(shape, n, has_c):
    """A function that takes a panel, n vectors, of the gradients of the states before the step after, from the product
    and past it, to where they belong: they stay in `sums` for the rows that had the states from this step; marked rows'
    go to the reset states, which leaves nothing to the others; to the initial ones those of rows that began there."""
    size, width, has_direct_h = shape.size, n * shape.lanes, shape.has_direct_h
    into_h0, move = _into_h0(shape, n), _move(n, size)

    @inner
    def arrive(first, last, rows, sums, carried, unit, H, left):
        live, live_later, mark = rows
        direct_h, dc, dh0, dreset_h, dreset_c = carried
        end = min(last, live_later)
        if mark:
            for row in range(first, end):
                if integers(mark + MARK * row, 1)[0]:
                    place = size * (unit + H * row)
                    move(sums + size * width * row, dreset_h + place, left)
                    if has_direct_h:
                        move(direct_h + place, dreset_h + place, left)
                    if has_c:
                        move(dc + place, dreset_c + place, left)
        into_h0(max(first, live), end, (sums, direct_h + size * unit, dh0 + size * unit, H, left))

    return arrive


def _move(n, size):
    """A function (source, target, left) that adds `left` elements to the target, at most a panel, and zeros them."""

    @inner
    def move(source, target, left):
        zero = zeros(1, n, size)
        there, here = (target, 0, 1, left), (source, 0, 1, left)
        store_part(add(load_part(zero, there), load_part(zero, here)), there)
        store_part(zero, here)

    return move


def _step(shape, n, cell_op):
    size, stored, width = shape.size, shape.stored, n * shape.lanes
    gate_row, gradient_row = size * shape.gate_row, stored * shape.gradient_row
    find_h, find_c = state_before(stored), state_before(size)

    @inner
    def step(first, last, upstream, memories, befores, afters, carried, where):
        saved, out = memories
        dy, dy_row, dy_last, live_later, sums = upstream
        mark, live_before, unit, H, left = where
        for row in range(first, last):
            here, place = stored * (unit + H * row), size * (unit + H * row)
            acc, d = zeros(1, n, size), dy_last + here
            if row < live_later:
                acc, d = load(acc, sums + size * width * row, 0), dy + stored * (unit + dy_row * row)
            h_before = stored * unit + find_h(row, mark, live_before, befores[0], H)
            c_before = size * unit + find_c(row, mark, live_before, befores[1], H)
            memory = (saved[0] + gate_row * row, saved[1], out[0] + gradient_row * row, out[1])
            states = (h_before, c_before, afters[0] + here, afters[1] + place)
            cell_op(acc, (*memory, d, *states, carried[0] + place, carried[1] + place, left))

    return step


def _into_h0(shape, n):
    size, width, has_direct_h = shape.size, n * shape.lanes, shape.has_direct_h

    @inner
    def write(first, last, arguments):
        sums, direct_h, dh0, H, left = arguments
        for row in range(first, last):
            acc = load(zeros(1, n, size), sums + size * width * row, 0)
            if has_direct_h:
                acc = add(acc, load_part(acc, (direct_h + size * H * row, 0, 1, left)))
            store_part(acc, (dh0 + size * H * row, 0, 1, left))

    return write


def _cell_op(name, shape, n):
    """The cell's backward on a row, n vectors, of gradients of h that came through the product."""
    cell = CELLS[name]
    _, backward = on_vectors(name)
    size, stored, W = shape.size, shape.stored, shape.lanes

    def op(frame):
        saved, saved_slab, out, out_slab, d, h, c_before, h_next, c, direct_h, dc, left = frame.integers
        for j in range(n):
            slab, block = divmod(j, shape.blocks)
            inside, offset, near = frame.below(left - j * W), j * W * size, j * W * stored
            exists = frame.below((left - slab * shape.slab_units) * W)  # all lanes, or none past the last slab
            source = saved + saved_slab * slab + block * shape.width * W * size
            values = [frame.load(source + v * W * size, exists) for v in range(cell.saved)]
            ds = [frame.tile[0][j] + frame.load(d + near, inside, stored)]
            if shape.has_direct_h:
                ds[0] = ds[0] + frame.load(direct_h + offset, inside)
            s = [frame.load(h + near, inside, stored)]
            s_next = [frame.load(h_next + near, inside, stored)]
            if cell.states == 2:
                ds.append(frame.load(dc + offset, inside))
                s.append(frame.load(c_before + offset, inside))
                s_next.append(frame.load(c + offset, inside))
            dx, du, direct = backward(ds, values, s, s_next)
            target = out + out_slab * slab + block * shape.slots * W * stored
            for slot, value in enumerate(dict.fromkeys((*dx, *du))):  # past H: zero, not inf times a zero weight
                frame.store(select(inside, value, 0.0), target + slot * W * stored, exists, stored)
            for address, value in zip((direct_h, dc), direct):
                if value is not None:
                    frame.store(value, address + offset, inside)

    return tile_op(op)
