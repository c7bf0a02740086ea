"""Rows as operands of products, whose terms are elements, or pairs where the elements are bfloat16.

A term of a row fills a lane: an element, or two that follow each other. Where the terms run over rows, a lane holds an
element of a row, or those of two rows, [pair of rows][element][2]. What is missing of a pair is zero. size: bytes of a
lane; stored: of an element, `size` or 2, bfloat16.
"""

from numba.core import types
from numba.extending import intrinsic

from . import narrow, target
from .groups import BLOCK
from .inner import inner
from .parts import load_part, store_part
from .tiles import load, outer, pack, store, tile_op, unpack, zeros
from .vector import I64, Int


def per_lane(size, stored):
    """Elements of a term."""
    return size // stored


def _outer_pairs(single):
    @intrinsic
    def outer_pairs(typing, tile, a, stride, b):
        def generate(context, builder, signature, arguments):
            array, *places = arguments
            values, places = unpack(builder, tile, array), [Int(builder, v) for v in places]
            return pack(builder, tile, narrow.emit_pairs(builder, tile, values, *places, only=single or None))

        return tile(tile, types.intp, types.intp, types.intp), generate

    return outer_pairs


def outer_term(size, stored, single=False):
    """`tiles.outer` of such terms; its stride is in elements. single: of a pair at a only the first is there."""
    return outer if size == stored else _outer_pairs(single)


@tile_op
def _load_pairs(frame):
    (p,) = frame.integers
    frame.tile[0][0] = narrow.load_pairs(frame.builder, frame.lanes, p.value)


@tile_op
def _load_pairs_part(frame):
    """As `parts.load_part` of tiles one vector wide."""
    p, stride, rows, columns = frame.integers
    builder = frame.builder
    for i, row in enumerate(frame.tile):
        inside = builder.icmp_signed("<", I64(i), rows.value)
        count = builder.select(inside, columns.value, I64(0))
        row[0] = narrow.load_pairs(builder, frame.lanes, (p + stride * (i * narrow.BFLOAT16)).value, count)


def load_terms(size, stored):
    """`parts.load_part` of tiles one vector wide, of terms; stride and columns are in elements."""
    return load_part if size == stored else _load_pairs_part


def copy_rows(size, stored):
    """Rows of D elements to rows of whole vectors of terms, `dst_row` lanes apart."""
    W, part = target.current().lanes(size), load_terms(size, stored)
    step = W * per_lane(size, stored)

    @inner
    def copy(src, src_row, count, D, dst, dst_row):
        for i in range(count):
            p, q = src + stored * src_row * i, dst + size * dst_row * i
            for d in range(0, D - step + 1, step):
                if size == stored:
                    store(load(zeros(1, 1, size), p + stored * d, 0), q + stored * d, 0)
                else:
                    store(_load_pairs(zeros(1, 1, size), (p + stored * d,)), q + stored * d, 0)
            if D % step:
                d = D // step * step
                store(part(zeros(1, 1, size), (p + stored * d, 0, 1, D - d)), q + stored * d, 0)

    return copy


@tile_op
def _join(frame):
    """(p, stride, rows, columns) -> pairs of the elements of two bfloat16 rows at p; zero outside rows and columns. The
    first row is there."""
    p, stride, rows, columns = frame.integers
    inside = frame.below(columns)
    second = inside & frame.below((rows - 1) * frame.width)
    low = frame.load(p, inside, narrow.BFLOAT16)
    high = frame.load(p + stride * narrow.BFLOAT16, second, narrow.BFLOAT16)
    frame.tile[0][0] = narrow.join(low, high)


@tile_op
def _join_whole(frame):
    """(p, stride) -> as `_join`, all of it inside."""
    p, stride = frame.integers
    rows = (frame.load(place, stored=narrow.BFLOAT16) for place in (p, p + stride * narrow.BFLOAT16))
    frame.tile[0][0] = narrow.join(*rows)


def pair_rows(size):
    """`count` bfloat16 rows of D elements to [pair of rows][element][2], whole vectors, `dst_row` lanes apart."""
    W = target.current().lanes(size)

    @inner
    def copy(src, src_row, count, D, dst, dst_row):
        for i in range(0, count, 2):
            p, q = src + narrow.BFLOAT16 * src_row * i, dst + size * dst_row * (i // 2)
            whole = D // W * W if i + 1 < count else 0
            for d in range(0, whole, W):
                store(_join_whole(zeros(1, 1, size), (p + narrow.BFLOAT16 * d, src_row)), q + size * d, 0)
            for d in range(whole, D, W):
                part = p + narrow.BFLOAT16 * d, src_row, count - i, D - d
                store(_join(zeros(1, 1, size), part), q + size * d, 0)

    return copy


def load_rows(size, stored):
    """`parts.load_part` of tiles one vector wide, of a term that runs over rows: one, or two, of which the first is
    there."""
    return load_part if size == stored else _join


def rows_as_terms(size, stored):
    """Rows to operands whose terms run over them: copied, or paired."""
    return copy_rows(size, stored) if size == stored else pair_rows(size)


def fetch_rows(size, stored):
    """A block of keys, or of values, and what has been added to their gradients, which is nothing if they are new.

    copies: where both go, and the rows as terms that run over them, or 0; the lanes between rows, the elements of one.
    """
    copy_own, copy_sums, copy_terms = copy_rows(size, stored), copy_rows(size, size), rows_as_terms(size, stored)
    W = target.current().lanes(size)

    @inner
    def fetch(src, src_row, gradient, count, new, copies):
        own, sums, paired, row, D = copies
        copy_own(src, src_row, count, D, own, row)
        if paired:
            copy_terms(src, src_row, count, D, paired, row)
        if new:
            for i in range(0, BLOCK * row, W):
                store(zeros(1, 1, size), sums + size * i, 0)
        else:
            copy_sums(gradient, D, count, D, sums, row)

    return fetch


def write_rows(size):
    """Rows of whole vectors, `src_row` elements apart, to `count` rows of D elements that follow each other."""
    W = target.current().lanes(size)

    @inner
    def write(src, src_row, count, D, dst):
        for i in range(count):
            for d in range(0, D, W):
                vector = load(zeros(1, 1, size), src + size * (src_row * i + d), 0)
                store_part(vector, (dst + size * (D * i + d), 0, 1, D - d))

    return write
