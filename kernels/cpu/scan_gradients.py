"""Gradients of x, the weights and the biases from the gates' gradients of one chunk, as tile products.

    dx += D W_ih          dW_ih += D^T x          dW_hh += D^T h          db += the sum of D's rows

D are the chunk's gate gradients, just written and still in the cache. Columns of x and h are packed into panels of
two vectors, so that a product over the chunk's rows reads both operands in order. Operations: 4 rows G H (I + H)
less dh's.
"""

from . import target
from .gradient_product import gradient_product
from .inner import inner
from .layout import PANEL, WIDE, layout
from .parts import load_part, store_part
from .product import LINE
from .tiles import add, load, outer, prefetch, store, zeros

_BLOCK = 64  # rows summed in one go (see product.BLOCK): torch adds the weights' gradients step by step

ARGUMENTS = (
    *("gradients", "B", "count"),  # of this chunk: `count` steps of B rows
    *("x", "x_time", "x_row"),  # (count, B, I): address, strides
    *("h", "h_time", "h_row"),  # (count, B, H): h_{t-1} of each step but, if h0 is not 0, the first
    "h0",  # (B, H) contiguous: h_{t-1} of the chunk's first step, or 0
    *("dx", "dx_time", "dx_row", "w_ih"),  # (count, B, I), 0: not wanted; W_ih packed for "x"
    "dx_add",  # 1: add to what is there
    *("dw_ih", "dw_hh"),  # (G H, I), (G H, H) contiguous; 0: not wanted
    "db",  # (slabs, blocks, slots, W): sums of the gate gradients
    "first_chunk",  # 1: write the sums; 0: add to them
    "panels",  # scratch for rows x (I or H, rounded up) elements
    "sums",  # scratch for rows x PANEL W elements
    *("I", "H"),
    *("slab_first", "slab_last"),  # slabs of dW and db
)


def build(cell, size):
    shape = layout(cell, size, True)
    units, gradient_row = shape.slab_units, shape.gradient_row
    W = shape.lanes
    multiply, write_x = gradient_product(shape, shape.x_slots), _write_x(shape)
    into_ih = _into_weights(shape, shape.x_slots)
    into_hh = into_ih if shape.x_slots == shape.u_slots else _into_weights(shape, shape.u_slots)
    pack = _pack_columns(shape)
    into_biases = _into_biases(shape)
    panel_weights = PANEL * W * len(shape.x_slots) * units

    @inner
    def gradients_of(
        gradients, B, count, x, x_time, x_row, h, h_time, h_row, h0, dx, dx_time, dx_row, w_ih, dx_add, dw_ih, dw_hh,
        db, first_chunk, panels, sums, I, H, slab_first, slab_last
    ):  # fmt: skip
        rows, slabs = count * B, -(-H // units)
        slab_bytes = size * gradient_row * rows
        if dx:
            for panel in range(-(-I // (PANEL * W))):
                column = PANEL * W * panel
                weights = w_ih + size * panel_weights * slabs * panel
                multiply(0, rows, rows, (gradients, slab_bytes, slabs, weights), sums)
                write_x(sums, B, count, (dx + size * column, dx_time, dx_row), I - column, dx_add)
        slab_range = (slab_first, slab_last)
        if dw_ih:
            into_biases(gradients, slab_bytes, rows, db, first_chunk, slab_range)
            pack(x, x_time, x_row, 0, B, count, I, panels)
            into_ih(gradients, slab_bytes, rows, panels, dw_ih, I, H, first_chunk, slab_range)
            pack(h, h_time, h_row, h0, B, count, H, panels)
            into_hh(gradients, slab_bytes, rows, panels, dw_hh, H, H, first_chunk, slab_range)

    return gradients_of


def _write_x(shape):
    size, width = shape.size, PANEL * shape.lanes

    @inner
    def write(sums, B, count, place, left, dx_add):
        """Rows (step, b) of the sums to those of dx, `left` columns."""
        dx, dx_time, dx_row = place
        for step in range(count):
            for b in range(B):
                acc = load(zeros(1, PANEL, size), sums + size * width * (step * B + b), 0)
                row = (dx + size * (dx_time * step + dx_row * b), 0, 1, left)
                if dx_add:
                    acc = add(acc, load_part(acc, row))
                store_part(acc, row)

    return write


def _pack_columns(shape):
    """Rows (step, b) of a (count, B, N) operand as panels [panel][row][WIDE W], zero past N."""
    size, wide = shape.size, shape.wide

    @inner
    def pack(a, a_time, a_row, first_step, B, count, N, panels):
        for panel in range(-(-N // wide)):
            column = panel * wide
            target = panels + size * wide * count * B * panel
            for step in range(count):
                source, stride = a + size * a_time * step, a_row
                if step == 0 and first_step:
                    source, stride = first_step, N
                for b in range(B):
                    part = load_part(zeros(1, WIDE, size), (source + size * (stride * b + column), 0, 1, N - column))
                    store(part, target, 0)
                    target += size * wide

    return pack


def _into_weights(shape, slots):
    """dW (gates * H, N) (+)= D^T panels, for a range of slabs."""
    size, W, blocks, units, row_slots = shape.size, shape.lanes, shape.blocks, shape.slab_units, shape.slots
    gradient_row, wide = shape.gradient_row, shape.wide
    m = min(1 << (target.current().rows(WIDE).bit_length() - 1), W)  # a divisor of W
    multiply, ask = _down_rows(m, shape), _ask_for(m, shape)

    @inner
    def run(gradients, slab_bytes, rows, panels, dw, N, H, first_chunk, slab_range):
        for slab in range(slab_range[0], slab_range[1]):
            for panel in range(-(-N // wide)):
                b = panels + size * wide * rows * panel
                for block in range(blocks):
                    for gate, slot in enumerate(slots):
                        for lane in range(0, W, m):
                            unit = slab * units + block * W + lane
                            a = gradients + slab_bytes * slab + size * ((block * row_slots + slot) * W + lane)
                            place = (dw + size * ((gate * H + unit) * N + wide * panel), N, H - unit, N - wide * panel)
                            ask(place)
                            acc = multiply(a, gradient_row, rows, b)
                            if not first_chunk:
                                acc = add(acc, load_part(acc, place))
                            store_part(acc, place)

    return run


def _ask_for(m, shape):
    """A function (place) that prefetches a tile of the weights' gradients, which is added to only at the end."""
    size, width = shape.size, shape.size * shape.wide

    @inner
    def ask(place):
        for row in range(m):
            for line in range(0, width, LINE):
                prefetch(place[0] + size * place[1] * row + line)

    return ask


def _down_rows(m, shape):
    """A function (a, a_row, rows, b) -> (m lanes of D, WIDE vectors): D's lanes times packed rows, summed."""
    size, wide = shape.size, shape.wide

    @inner
    def multiply(a, a_row, rows, b):
        total = zeros(m, WIDE, size)
        for first in range(0, rows, _BLOCK):
            block = zeros(m, WIDE, size)
            for row in range(first, min(first + _BLOCK, rows)):
                block = outer(block, a + size * a_row * row, 1, b + size * wide * row)
            total = add(total, block)
        return total

    return multiply


def _into_biases(shape):
    n, size = shape.blocks * shape.slots, shape.size
    gradient_row = shape.gradient_row

    @inner
    def run(gradients, slab_bytes, rows, db, first_chunk, slab_range):
        for slab in range(slab_range[0], slab_range[1]):
            source, place = gradients + slab_bytes * slab, db + size * gradient_row * slab
            total = zeros(1, n, size)
            for start in range(0, rows, _BLOCK):
                block = zeros(1, n, size)
                for row in range(start, min(start + _BLOCK, rows)):
                    block = add(block, load(block, source + size * gradient_row * row, 0))
                total = add(total, block)
            if not first_chunk:
                total = add(total, load(total, place, 0))
            store(total, place, 0)

    return run
