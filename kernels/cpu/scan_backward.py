"""The recurrence backward over the steps of one chunk, for any cell: the gates' gradients, and the states' carried on.

Per step and panel of 4 W units: the next step's gate gradients times W_hh, the cell's backward on the sums, its
gradients written to the chunk's gradient memory, which is then the ready operand of `scan_gradients`.

Operations: 2 T B G H H.
"""

from ..cells import CELLS
from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, layout
from .parts import load_part, store_part
from .primitives import on_vectors
from .tiles import add, load, tile_op, zeros
from .vector import select

ARGUMENTS = (
    *("dy", "dy_time", "dy_row"),  # (T, B, H): address, strides
    "dy_last",  # (B, H) contiguous: dy of step T - 1 with the gradient of h_T in it
    *("h", "h_time"),  # (T, B, H): address, stride of a step; the rows are contiguous
    *("h0", "c0"),  # (B, H) contiguous
    *("c", "c_time"),  # (T, B, H): address, stride of a step
    "gates",  # the saved values of this chunk
    "w_hh",  # packed for "h"
    "direct_h",  # (B, H) contiguous, in place: the gradient of h that is carried over a step past the product
    "dc",  # (B, H) contiguous, in place: of c_T, then, with step 0, of c_0
    "dh0",  # (B, H) contiguous: written with step 0
    "gradients",  # of this chunk
    *("later", "later_rows"),  # of the step after it, in a chunk of `later_rows` rows
    "sums",  # scratch for B x PANEL W elements
    *("T", "B", "H"),
    *("t0", "count"),  # the chunk's steps
    *("first", "last"),  # rows, on the cuts of B
)


def build(cell, size):
    shape = layout(cell, size, True)
    W, units, gate_row, gradient_row = shape.lanes, shape.slab_units, shape.gate_row, shape.gradient_row
    multiply = gradient_product(shape, shape.u_slots)
    back, into_h0 = _step(shape, _cell_op(cell, shape)), _into_h0(shape)
    blocks = shape.blocks
    panel_weights = PANEL * W * len(shape.u_slots) * units  # elements a slab

    @inner
    def scan(
        dy, dy_time, dy_row, dy_last, h, h_time, h0, c0, c, c_time, gates, w_hh, direct_h, dc, dh0,
        gradients, later, later_rows, sums, T, B, H, t0, count, first, last
    ):  # fmt: skip
        slabs = -(-H // units)
        rows = count * B
        panels = -(-H // (PANEL * W))
        for t in range(t0 + count - 1, t0 - 1, -1):
            h_before = h + size * h_time * (t - 1) if t > 0 else h0
            c_before = c + size * c_time * (t - 1) if t > 0 else c0
            d, d_row = (dy + size * dy_time * t, dy_row) if t < T - 1 else (dy_last, H)
            here = gradients + size * gradient_row * B * (t - t0)
            saved = gates + size * gate_row * B * (t - t0)
            product_slabs = slabs if t < T - 1 else 0
            for panel in range(panels):
                unit = size * PANEL * W * panel
                slab = PANEL * panel // blocks
                packed = w_hh + size * panel_weights * slabs * panel
                multiply(first, last, B, (later, size * gradient_row * later_rows, product_slabs, packed), sums)
                memory = (saved + size * gate_row * rows * slab, size * gate_row * rows)
                memory_out = (here + size * gradient_row * rows * slab, size * gradient_row * rows)
                before = (d + unit, d_row, h_before + unit, c_before + unit)
                after = (h + size * h_time * t + unit, c + size * c_time * t + unit)
                left = H - PANEL * W * panel
                back(first, last, (sums, memory, memory_out, before, after, direct_h + unit, dc + unit, H, left))
            later, later_rows = here, rows
        if t0 == 0:
            for panel in range(panels):
                unit = size * PANEL * W * panel
                packed = w_hh + size * panel_weights * slabs * panel
                multiply(first, last, B, (later, size * gradient_row * later_rows, slabs, packed), sums)
                into_h0(first, last, (sums, direct_h + unit, dh0 + unit, H, H - PANEL * W * panel))

    return scan


def _step(shape, cell_op):
    size, width, gate_row, gradient_row = shape.size, PANEL * shape.lanes, shape.gate_row, shape.gradient_row

    @inner
    def step(first, last, arguments):
        sums, saved, gradients, before, after, direct_h, dc, H, left = arguments
        d, d_row, h, c_before = before
        h_next, c = after
        for row in range(first, last):
            acc = load(zeros(1, PANEL, size), sums + size * width * row, 0)
            written = gradients[0] + size * gradient_row * row
            memory = (saved[0] + size * gate_row * row, saved[1], written, gradients[1])
            carried = size * H * row
            past = (d + size * d_row * row, h + carried, c_before + carried)
            next_ = (h_next + carried, c + carried, direct_h + carried, dc + carried)
            cell_op(acc, (*memory, *past, *next_, left))

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
