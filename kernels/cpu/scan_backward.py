"""The recurrence backward over the steps of one chunk, for any cell: the gates' gradients, and the states' carried on.

Per step and panel of 4 W units: a tile of the next step's gate gradients times W_hh, the cell's backward on its
registers, its gradients written to the chunk's gradient memory, which is then the ready operand of `scan_gradients`.

Operations: 2 T B G H H.
"""

from functools import cache

from ..cells import CELLS
from .inner import inner
from .layout import PANEL, layout
from .parts import load_part, store_part
from .primitives import on_vectors
from .product import BLOCK, LINE, accumulate, by_rows
from .tiles import add, tile_op, zeros
from .vector import select

ARGUMENTS = (
    *("dy", "dy_time", "dy_row"),  # (T, B, H): address, strides
    "dy_last",  # (B, H) contiguous: dy of step T - 1 with the gradient of h_T in it
    *("y", "y_time", "y_row"),  # (T, B, H)
    *("h0", "c0"),  # (B, H) contiguous
    *("c", "c_time"),  # (T, B, H): address, stride of a step
    "gates",  # the saved values of this chunk
    "w_hh",  # packed for "h"
    "direct_h",  # (B, H) contiguous, in place: the gradient of h that is carried over a step past the product
    "dc",  # (B, H) contiguous, in place: of c_T, then, with step 0, of c_0
    "dh0",  # (B, H) contiguous: written with step 0
    "gradients",  # of this chunk
    *("later", "later_rows"),  # of the step after it, in a chunk of `later_rows` rows
    *("T", "B", "H"),
    *("t0", "count"),  # the chunk's steps
    *("first", "last"),  # rows, on the cuts of B
)


def build(cell, size):
    shape = layout(cell, size, True)
    W, units, gate_row, gradient_row = shape.lanes, shape.slab_units, shape.gate_row, shape.gradient_row
    cell_op = _cell_op(cell, shape)
    multiply = cache(lambda m: gradient_product(m, shape, shape.u_slots))
    back = by_rows(lambda m: _step(m, shape, multiply(m), cell_op), PANEL)
    into_h0 = by_rows(lambda m: _into_h0(m, shape, multiply(m)), PANEL)
    blocks = shape.blocks
    panel_weights = PANEL * W * len(shape.u_slots) * units  # elements a slab

    @inner
    def scan(
        dy, dy_time, dy_row, dy_last, y, y_time, y_row, h0, c0, c, c_time, gates, w_hh, direct_h, dc, dh0,
        gradients, later, later_rows, T, B, H, t0, count, first, last
    ):  # fmt: skip
        slabs = -(-H // units)
        rows = count * B
        panels = -(-H // (PANEL * W))
        for t in range(t0 + count - 1, t0 - 1, -1):
            h, h_row = (y + size * y_time * (t - 1), y_row) if t > 0 else (h0, H)
            c_before = c + size * c_time * (t - 1) if t > 0 else c0
            d, d_row = (dy + size * dy_time * t, dy_row) if t < T - 1 else (dy_last, H)
            here = gradients + size * gradient_row * B * (t - t0)
            saved = gates + size * gate_row * B * (t - t0)
            product_slabs = slabs if t < T - 1 else 0
            for panel in range(panels):
                unit = size * PANEL * W * panel
                slab = PANEL * panel // blocks
                packed = w_hh + size * panel_weights * slabs * panel
                following = w_hh + size * panel_weights * slabs * (panel + 1 if panel + 1 < panels else 0)
                weights = (later, size * gradient_row * later_rows, product_slabs, packed, following)
                memory = (saved + size * gate_row * rows * slab, size * gate_row * rows)
                memory_out = (here + size * gradient_row * rows * slab, size * gradient_row * rows)
                before = (d + unit, d_row, h + unit, h_row, c_before + unit)
                after = (y + size * y_time * t + unit, y_row, c + size * c_time * t + unit)
                left = H - PANEL * W * panel
                back(first, last, B, (weights, memory, memory_out, before, after, direct_h + unit, dc + unit, H, left))
            later, later_rows = here, rows
        if t0 == 0:
            for panel in range(panels):
                unit = size * PANEL * W * panel
                packed = w_hh + size * panel_weights * slabs * panel
                weights = (later, size * gradient_row * later_rows, slabs, packed, packed)
                into_h0(first, last, B, (weights, direct_h + unit, dh0 + unit, H, H - PANEL * W * panel))

    return scan


def gradient_product(m, shape, slots):
    """A function (operands, row) -> tile: a row of tiles of gradients times packed weights.

    operands: gradients, the bytes of a slab of them, slabs, one panel of weights, the panel that will follow.
    """
    multiply = _slab_product(m, shape, slots)
    size, W, row_elements = shape.size, shape.lanes, shape.gradient_row
    slab_weights = size * PANEL * W * shape.blocks * len(slots) * W
    lines = size * PANEL * W // LINE  # of a term's weights
    slab_lines = slab_weights // lines
    group = max(1, BLOCK * size * PANEL * W // slab_weights)

    @inner
    def run(operands, row):
        gradients, slab_bytes, slabs, packed, following = operands
        a = gradients + size * row_elements * row
        share = slabs * slab_lines * (row // m)  # each tile asks for its part of what follows
        ahead = following + share if row < m * lines else packed
        total = zeros(m, PANEL, size)
        for first in range(0, slabs, group):
            block = zeros(m, PANEL, size)
            for slab in range(first, min(first + group, slabs)):
                block = multiply(block, a + slab_bytes * slab, packed + slab_weights * slab, ahead + slab_lines * slab)
            total = add(total, block)
        return total

    return run


def _slab_product(m, shape, slots):
    """A function (acc, a, b, ahead): acc += one slab's part of rows of gradients times its packed weights."""
    size, W, blocks, row_elements = shape.size, shape.lanes, shape.blocks, shape.gradient_row
    K, row_slots, vectors = len(slots) * W, shape.slots, size * PANEL * W
    runs = _runs(slots)

    if K * blocks == row_elements:

        @inner
        def run(acc, a, b, ahead):
            return accumulate(acc, a, row_elements, row_elements, b, ahead)

    else:

        @inner
        def run(acc, a, b, ahead):
            for block in range(blocks):
                for start, length, place in runs:
                    source = a + size * W * (block * row_slots + start)
                    first = block * K + place * W
                    acc = accumulate(acc, source, row_elements, length * W, b + vectors * first, ahead + LINE * first)
            return acc

    return run


def _runs(slots):
    """Consecutive slots as (first slot, how many, place in the packed weights)."""
    runs = []
    for place, slot in enumerate(slots):
        if runs and slot == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([slot, 1, place])
    return tuple(tuple(run) for run in runs)


def _step(m, shape, multiply, cell_op):
    size, gate_row, gradient_row = shape.size, shape.gate_row, shape.gradient_row

    @inner
    def tile(row, arguments):
        weights, saved, gradients, before, after, direct_h, dc, H, left = arguments
        d, d_row, h, h_row, c_before = before
        h_next, y_row, c = after
        acc = multiply(weights, row)
        memory = (saved[0] + size * gate_row * row, saved[1], gradients[0] + size * gradient_row * row, gradients[1])
        c_row = size * H * row
        past = (d + size * d_row * row, d_row, h + size * h_row * row, h_row, c_before + c_row)
        next_ = (h_next + size * y_row * row, y_row, c + c_row, direct_h + c_row, dc + c_row)
        cell_op(acc, (*memory, *past, *next_, H, left))

    return tile


def _into_h0(m, shape, multiply):
    size, has_direct_h = shape.size, shape.has_direct_h

    @inner
    def tile(row, arguments):
        weights, direct_h, dh0, H, left = arguments
        acc = multiply(weights, row)
        if has_direct_h:
            acc = add(acc, load_part(acc, (direct_h + size * H * row, H, m, left)))
        store_part(acc, (dh0 + size * H * row, H, m, left))

    return tile


def _cell_op(name, shape):
    """The cell's backward on a tile of gradients of h that came through the product."""
    cell = CELLS[name]
    _, backward = on_vectors(name)
    size, W = shape.size, shape.lanes

    def op(frame):
        saved, saved_slab, out, out_slab, d, d_row, h, h_row, c_before, *rest = frame.integers
        h_next, y_row, c, direct_h, dc, H, left = rest
        for j in range(PANEL):
            slab, block = divmod(j, shape.blocks)
            inside, offset = frame.below(left - j * W), j * W * size
            exists = frame.below((left - slab * shape.slab_units) * W)  # all lanes, or none past the last slab
            for i in range(frame.m):
                carried = H * (i * size) + offset
                source = saved + saved_slab * slab + (i * shape.gate_row + block * shape.width * W) * size
                values = [frame.load(source + v * W * size, exists) for v in range(cell.saved)]
                dh = frame.tile[i][j] + frame.load(d + d_row * (i * size) + offset, inside)
                if shape.has_direct_h:
                    dh = dh + frame.load(direct_h + carried, inside)
                ds = [dh]
                s = [frame.load(h + h_row * (i * size) + offset, inside)]
                s_next = [frame.load(h_next + y_row * (i * size) + offset, inside)]
                if cell.states == 2:
                    ds.append(frame.load(dc + carried, inside))
                    s.append(frame.load(c_before + carried, inside))
                    s_next.append(frame.load(c + carried, inside))
                dx, du, direct = backward(ds, values, s, s_next)
                target = out + out_slab * slab + (i * shape.gradient_row + block * shape.slots * W) * size
                for slot, value in enumerate(dict.fromkeys((*dx, *du))):  # past H: zero, not inf times a zero weight
                    frame.store(select(inside, value, 0.0), target + slot * W * size, exists)
                for address, value in zip((direct_h, dc), direct):
                    if value is not None:
                        frame.store(value, address + carried, inside)

    return tile_op(op)
