"""The recurrence forward over time, for any cell: gates stay in registers between the product and the cell.

A chunk of whole time steps at a time, the input projections of all its rows are written into the gates' memory, then
the steps are taken. Per step and slab: a tile of h_{t-1} W_hh^T, the cell on its registers, the states stored. For
training the cell's saved values replace the pre-activations; all chunks are kept. For inference one chunk is used
again and again.

Operations: 2 T B G H (I + H). Bytes from outside the caches: x and y once; the weights once a step where they do not
fit.
"""

from ..cells import CELLS
from .inner import inner
from .layout import layout
from .layout import steps as chunk_steps
from .parts import load_part, store_part
from .primitives import on_vectors
from .product import LINE, by_rows, product
from .tiles import add, load, tile_op, zeros

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
    "h_n",  # (B, H) contiguous: a copy of h_T
)


def build(cell, size, save):
    shape = layout(cell, size, save)
    n, units = shape.vectors, shape.slab_units
    gate_row, panel = shape.gate_row, size * shape.vectors * shape.lanes
    project = by_rows(lambda m: _project(m, shape, size), n)
    step = by_rows(lambda m: _step(m, shape, size, _cell_op(cell, shape, save)), n)
    steps = inner(chunk_steps)
    copy_rows = _copy_rows(size, shape.lanes)

    @inner
    def input_part(x, x_time, x_row, w_ih, b_ih, gates, t0, count, B, I, H, first, last):
        """Input pre-activations of `count` steps from t0, all slabs."""
        rows = count * B
        for slab in range(-(-H // units)):
            target = gates + size * gate_row * rows * slab
            weights = (I, w_ih + panel * I * slab, b_ih + panel * slab)
            if B == 1:
                project(0, count, count, (x + size * x_time * t0, x_time, target, *weights))
            elif x_time == B * x_row and last - first == B and B < 16:
                project(0, rows, rows, (x + size * x_time * t0, x_row, target, *weights))
            else:
                for s in range(count):
                    source = x + size * x_time * (t0 + s)
                    project(first, last, B, (source, x_row, target + size * gate_row * B * s, *weights))

    @inner
    def scan(
        x, x_time, x_row, w_ih, w_hh, b_ih, b_hh, h0, c0, y, y_time, y_row, h, h_time, h_row,
        c, c_time, gates, keep, T, B, I, H, first, last, h_n
    ):  # fmt: skip
        slabs = -(-H // units)
        length = steps(B)
        for t0 in range(0, T, length):
            count = min(length, T - t0)
            chunk = gates + size * gate_row * slabs * B * t0 * keep
            input_part(x, x_time, x_row, w_ih, b_ih, chunk, t0, count, B, I, H, first, last)
            for t in range(t0, t0 + count):
                before, before_row = (h + size * h_time * (t - 1), h_row) if t > 0 else (h0, H)
                c_before = c + size * c_time * (t - 1) if t > 0 else c0
                for slab in range(slabs):
                    unit = size * units * slab
                    row = chunk + size * gate_row * B * (count * slab + t - t0)
                    following = w_hh + panel * H * (slab + 1 if slab + 1 < slabs else 0)
                    weights = (w_hh + panel * H * slab, following, b_hh + panel * slab)
                    outputs = (y + size * y_time * t + unit, y_row, h + size * h_time * t + unit, h_row)
                    states = (c_before + unit, c + size * c_time * t + unit)
                    arguments = (before, before_row, unit, *weights, row, *outputs, *states, H, H - units * slab)
                    step(first, last, B, arguments)
        copy_rows(h + size * h_time * (T - 1), h_row, h_n, H, first, last)

    return scan


def _copy_rows(size, W):
    @inner
    def copy(source, stride, target, H, first, last):
        """Rows first ... last - 1 of H elements to contiguous ones."""
        for row in range(first, last):
            for k in range(0, H, W):
                part = load_part(zeros(1, 1, size), (source + size * (stride * row + k), 0, 1, H - k))
                store_part(part, (target + size * (H * row + k), 0, 1, H - k))

    return copy


def _project(m, shape, size):
    n, gate_row = shape.vectors, shape.gate_row

    @tile_op
    def store_gates(frame):
        """The tile's [block][gate] vectors to rows of [block][width]."""
        (target,) = frame.integers
        for i in range(m):
            for j, vector in enumerate(frame.tile[i]):
                place = (j // shape.gates) * shape.width + j % shape.gates
                frame.store(vector, target + (i * gate_row + place * frame.width) * size)

    @inner
    def tile(row, arguments):
        x, x_row, gates, I, w_ih, b_ih = arguments
        acc = product(m, n, size, x + size * x_row * row, x_row, I, w_ih, w_ih)
        store_gates(add(acc, load(acc, b_ih, 0)), (gates + size * gate_row * row,))

    return tile


def _step(m, shape, size, cell_op):
    n, gate_row = shape.vectors, shape.gate_row
    lines = size * n * shape.lanes // LINE  # of a term's weights

    @inner
    def tile(row, arguments):
        before, before_row, unit, w_hh, following, b_hh, gates, y, y_row, h, h_row, c_before, c, H, left = arguments
        before = before + size * before_row * row
        share = LINE * H * (row // m)  # each tile asks for its part of what follows
        ahead = following + share if row < m * lines else w_hh
        acc = product(m, n, size, before, before_row, H, w_hh, ahead)
        c_row = size * H * row
        outputs = (y + size * y_row * row, y_row, h + size * h_row * row, h_row)
        states = (before + unit, before_row, *outputs, c_before + c_row, c + c_row, H)
        cell_op(add(acc, load(acc, b_hh, 0)), (gates + size * gate_row * row, *states, left))

    return tile


def _cell_op(name, shape, save):
    """The cell on a tile of recurrent pre-activations."""
    cell = CELLS[name]
    forward, _ = on_vectors(name)
    size, W = shape.size, shape.lanes

    def op(frame):
        gates, before, before_row, y, y_row, h, h_row, c_before, c, c_row, left = frame.integers
        for block in range(shape.blocks):
            inside = frame.below(left - block * W)
            offset = block * W * size
            for i in range(frame.m):
                place = gates + (i * shape.gate_row + block * shape.width * W) * size
                x = [frame.load(place + g * W * size) for g in range(shape.gates)]
                u = frame.tile[i][block * shape.gates : (block + 1) * shape.gates]
                s = [frame.load(before + before_row * (i * size) + offset, inside)]
                if cell.states == 2:
                    s.append(frame.load(c_before + c_row * (i * size) + offset, inside))
                s_next, saved = forward(x, u, s)
                frame.store(s_next[0], y + y_row * (i * size) + offset, inside)
                if save:
                    frame.store(s_next[0], h + h_row * (i * size) + offset, inside)
                if cell.states == 2:
                    frame.store(s_next[1], c + c_row * (i * size) + offset, inside)
                for v, value in enumerate(saved if save else ()):
                    frame.store(value, place + v * W * size)

    return tile_op(op)
