"""The tiles of a recurrence forward: input pre-activations, and a step of the cell on its recurrent product."""

from ..cells import CELLS
from .inner import inner
from .parts import load_part, store_part
from .primitives import on_vectors
from .product import LINE, product
from .steps import state_before
from .tiles import add, load, tile_op, zeros


def project_tile(m, shape, size):
    """A function (row, (x, x_row, gates, I, w_ih, b_ih)): pre-activations of m rows of x, in one slab."""
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


def step_tile(m, shape, size, cell_op):
    """A function (row, arguments): m rows of one step in one slab, the product and `cell_op` on its registers."""
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


def cell_op(name, shape, save):
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


def copy_rows(size, W):
    """A function that copies rows first ... last - 1 of H elements, `stride` apart, to contiguous ones."""

    copy_row = _copy_row(size, W)

    @inner
    def copy(source, stride, target, H, first, last):
        for row in range(first, last):
            copy_row(source + size * stride * row, target + size * H * row, H)

    return copy


def gather_rows(size, W):
    """A function that copies the states of rows first ... last - 1 before a step, as `state_before` finds them, to
    contiguous rows."""
    find, copy_row = state_before(size), _copy_row(size, W)

    @inner
    def gather(first, last, mark, live_before, places, target, H):
        for row in range(first, last):
            copy_row(find(row, mark, live_before, places, H), target + size * H * row, H)

    return gather


def _copy_row(size, W):
    @inner
    def copy(source, target, H):
        for k in range(0, H, W):
            part = load_part(zeros(1, 1, size), (source + size * k, 0, 1, H - k))
            store_part(part, (target + size * k, 0, 1, H - k))

    return copy
