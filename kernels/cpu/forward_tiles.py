"""The tiles of a recurrence forward: input pre-activations, and a step of the cell on its recurrent product."""

from ..cells import CELLS
from .inner import inner
from .layout import terms
from .narrow import INT8
from .primitives import on_vectors
from .product import LINE, product
from .steps import state_before
from .tiles import add, load, tile_op, zeros


def project_tile(m, shape):
    """A function (row, (x, x_row, gates, I, w_ih, b_ih)): pre-activations of m rows of x, in one slab."""
    n, gate_row, size, stored, weight = shape.vectors, shape.gate_row, shape.size, shape.stored, shape.weight
    finish = finish_sums(shape)

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
        x, x_row, gates, I, w_ih, b_ih, panels = arguments
        acc = product(m, n, size, stored, weight, x + stored * x_row * row, x_row, I, w_ih, w_ih, b_ih + 2 * panels)
        store_gates(finish(acc, b_ih, panels), (gates + size * gate_row * row,))

    return tile


def finish_sums(shape):
    """A function (sums, biases, panels): the sums, times a scale a column where weights are int8, plus the biases. The
    scales are `panels` bytes behind the biases, the sums of the columns as many behind those."""

    @tile_op
    def scale(frame):
        (scales,) = frame.integers
        for j in range(frame.n):
            factor = frame.load(scales + j * frame.width * shape.size)
            for row in frame.tile:
                row[j] = row[j] * factor

    if shape.weight == INT8:

        @inner
        def finish(acc, biases, panels):
            return add(scale(acc, (biases + panels,)), load(acc, biases, 0))

    else:

        @inner
        def finish(acc, biases, panels):
            return add(acc, load(acc, biases, 0))

    return finish


def step_tile(m, shape, cell_op, c_size):
    """A function (row, arguments): m rows of one step in one slab, the product and `cell_op` on its registers. c_size:
    bytes of an element of c."""
    n, gate_row, size, stored, weight = shape.vectors, shape.gate_row, shape.size, shape.stored, shape.weight
    lines = max(1, size * n * shape.lanes // LINE)  # of a term's weights
    count, finish = inner(terms), finish_sums(shape)

    @inner
    def tile(row, arguments):
        before, before_row, unit, weights, gates, y, y_row, h, h_row, c_before, c, H, left = arguments
        w_hh, following, b_hh, panels = weights
        before = before + stored * before_row * row
        share = LINE * count(H, size, weight) * (row // m)  # each tile asks for its part of what follows
        ahead = following + share if row < m * lines else w_hh
        acc = product(m, n, size, stored, weight, before, before_row, H, w_hh, ahead, b_hh + 2 * panels)
        c_row = c_size * H * row
        outputs = (y + stored * y_row * row, y_row, h + stored * h_row * row, h_row)
        states = (before + stored * unit, before_row, *outputs, c_before + c_row, c + c_row, H)
        cell_op(finish(acc, b_hh, panels), (gates + size * gate_row * row, *states, left))

    return tile


def cell_op(name, shape, save, c_size):
    """The cell on a tile of recurrent pre-activations."""
    cell = CELLS[name]
    forward, _ = on_vectors(name)
    size, stored, W = shape.size, shape.stored, shape.lanes

    def op(frame):
        gates, before, before_row, y, y_row, h, h_row, c_before, c, c_row, left = frame.integers
        for block in range(shape.blocks):
            inside, unit = frame.below(left - block * W), block * W
            for i in range(frame.m):
                place = gates + (i * shape.gate_row + block * shape.width * W) * size
                x = [frame.load(place + g * W * size) for g in range(shape.gates)]
                u = frame.tile[i][block * shape.gates : (block + 1) * shape.gates]
                s = [frame.load(before + (before_row * i + unit) * stored, inside, stored)]
                if cell.states == 2:
                    s.append(frame.load(c_before + (c_row * i + unit) * c_size, inside, c_size))
                s_next, saved = forward(x, u, s)
                frame.store(s_next[0], y + (y_row * i + unit) * stored, inside, stored)
                if save:
                    frame.store(s_next[0], h + (h_row * i + unit) * stored, inside, stored)
                if cell.states == 2:
                    frame.store(s_next[1], c + (c_row * i + unit) * c_size, inside, c_size)
                for v, value in enumerate(saved if save else ()):
                    frame.store(value, place + v * W * size)

    return tile_op(op)


def copy_rows(shape, stored):
    """A function that copies rows first ... last - 1 of H elements, `stride` apart, to contiguous ones. stored: bytes
    of an element."""
    copy_row = row_copier(shape, stored)

    @inner
    def copy(source, stride, target, H, first, last):
        for row in range(first, last):
            copy_row(source + stored * stride * row, target + stored * H * row, H)

    return copy


def gather_rows(shape, stored):
    """A function that copies the states of rows first ... last - 1 before a step, as `state_before` finds them, to
    contiguous rows."""
    find, copy_row = state_before(stored), row_copier(shape, stored)

    @inner
    def gather(first, last, mark, live_before, places, target, H):
        for row in range(first, last):
            copy_row(find(row, mark, live_before, places, H), target + stored * H * row, H)

    return gather


def row_copier(shape, stored):
    """A function copy(source, target, count) of elements that follow each other. stored: bytes of an element."""
    size, W = shape.size, shape.lanes

    @tile_op
    def move(frame):
        source, target, left = frame.integers
        inside = frame.below(left)
        frame.store(frame.load(source, inside, stored), target, inside, stored)

    @inner
    def copy(source, target, count):
        for k in range(0, count, W):
            move(zeros(1, 1, size), (source + stored * k, target + stored * k, count - k))

    return copy
