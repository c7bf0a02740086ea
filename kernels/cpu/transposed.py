"""What goes in and out of transposed attention: queries, masks and outputs, W x W tiles at a time."""

from llvmlite import ir

from . import target
from .inner import inner
from .parts import load_part, store_part
from .softmax import reciprocal
from .tiles import load, store, tile_op, transpose, zeros
from .vector import I8, I32, Mask, call, select

NO_MASK, BOOLS, FLOATS = 0, 1, 2


def pack_queries(n, size):
    """Q^T[dimension][query] times the scale; zeros beyond the last query."""
    W = target.current().lanes(size)

    @tile_op
    def scaled(frame):
        factor = frame.broadcast(frame.integers[0])
        for rows in frame.tile:
            rows[0] = rows[0] * factor

    @inner
    def pack(queries, scale, qt):
        q, q_row, count, D = queries
        for j in range(n):
            for d in range(0, D, W):
                rows = load_part(zeros(W, 1, size), (q + size * (q_row * j * W + d), q_row, count - j * W, D - d))
                store(scaled(transpose(rows, ()), (scale,)), qt + size * W * (n * d + j), n * W)

    return pack


def pack_mask(n, size):
    """What the mask adds to the scores of a block: added[key][query]."""
    W = target.current().lanes(size)

    @inner
    def pack(mask, mask_row, kind, queries, start, count, added):
        for j in range(n):
            rows = queries - j * W
            for i in range(0, count, W):
                place = mask_row * j * W + start + i
                target_rows = added + size * W * (n * i + j)
                if kind == FLOATS:
                    tile = load_part(zeros(W, 1, size), (mask + size * place, mask_row, rows, count - i))
                else:
                    tile = load_bools(zeros(W, 1, size), (mask + place, mask_row, rows, count - i))
                store(transpose(tile, ()), target_rows, n * W)

    return pack


@tile_op
def load_bools(frame):
    """(p, stride, rows, columns): bytes, read as 0 where true and -inf where false; 0 outside rows and columns."""
    p, stride, rows, columns = frame.integers
    kind = ir.VectorType(I8, frame.width)
    for i in range(frame.m):
        inside = frame.below(columns) & frame.below((rows - i) * frame.width)
        pointer = frame.builder.inttoptr((p + stride * i).value, kind.as_pointer())
        ones = ir.Constant(kind, [1] * frame.width)
        name = f"llvm.masked.load.v{frame.width}i8.p0"
        value = call(frame.builder, name, kind, pointer, I32(1), inside.value, ones)
        hidden = Mask(frame.builder, frame.builder.icmp_signed("==", value, ir.Constant(kind, [0] * frame.width)))
        frame.tile[i][0] = select(hidden, frame.constant("-inf"), 0.0)


def finish(n, size):
    """Divide O^T by the total and write its transpose."""
    W = target.current().lanes(size)

    @tile_op
    def divide(frame):
        (total,) = frame.integers
        factor = reciprocal(frame.load(total))
        for rows in frame.tile:
            rows[0] = rows[0] * factor

    @inner
    def write(ot, total, count, Dv, out):
        for j in range(n):
            for d in range(0, Dv, W):
                columns = load(zeros(W, 1, size), ot + size * W * (n * d + j), n * W)
                rows = transpose(divide(columns, (total + size * W * j,)), ())
                store_part(rows, (out + size * (Dv * j * W + d), Dv, count - j * W, Dv - d))

    return write
