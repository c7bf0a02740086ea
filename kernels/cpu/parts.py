"""Tiles at the edge of a matrix, and the denormal mode."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .tiles import tile_op
from .vector import I32, I64, Int, call


def _places(frame, size):
    """(row, vector, address, mask) of every vector of a tile at p, of elements of `size` bytes: inside `rows` rows and
    `columns` columns. The frame's integers: p, stride, rows, columns."""
    builder, (p, stride, rows, columns) = frame.builder, frame.integers
    for i in range(frame.m):
        inside = builder.icmp_signed("<", I64(i), rows.value)
        left = Int(builder, builder.select(inside, columns.value, I64(0)))
        for j in range(frame.n):
            yield i, j, p + stride * (i * size) + j * frame.width * size, frame.below(left - j * frame.width)


def part_loader(stored=None):
    """A `load_part` of elements of `stored` bytes in memory, where they are not those of a lane."""

    @tile_op
    def load_part(frame):
        """(tile, (p, stride, rows, columns)) -> the tile at p; outside rows and columns nothing is read: zeros."""
        for i, j, place, mask in _places(frame, stored or frame.lanes.size):
            frame.tile[i][j] = frame.load(place, mask, stored)

    return load_part


def part_storer(stored=None):
    """A `store_part` likewise."""

    @tile_op
    def store_part(frame):
        """(tile, (p, stride, rows, columns)): write the tile at p, nothing outside rows and columns."""
        for i, j, place, mask in _places(frame, stored or frame.lanes.size):
            frame.store(frame.tile[i][j], place, mask, stored)

    return store_part


load_part, store_part = part_loader(), part_storer()


@intrinsic
def never_inline(typing):
    """Keep the function that this stands in out of its callers: the denormal mode is set around the call."""

    def generate(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


_FLUSH = {"x86_64": 0x8040, "aarch64": 1 << 24}  # MXCSR: FTZ and DAZ; FPCR: FZ


@intrinsic
def flush_denormals(typing):
    """Set the thread's flush-to-zero mode; gives the mode as it was. Unknown machines are left alone (zero)."""

    def generate(context, builder, signature, arguments):
        machine = builder.module.triple.split("-")[0]
        if machine == "x86_64":
            slot = builder.alloca(I32)
            call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), slot)
            old = builder.load(slot)
            builder.store(builder.or_(old, I32(_FLUSH[machine])), slot)
            call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), slot)
            return builder.zext(old, I64)
        if machine in ("aarch64", "arm64"):
            old = call(builder, "llvm.aarch64.get.fpcr", I64)
            call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), builder.or_(old, I64(_FLUSH["aarch64"])))
            return old
        return I64(0)

    return types.int64(), generate


@intrinsic
def restore_denormals(typing, mode):
    """Give the thread back the mode that `flush_denormals` returned."""

    def generate(context, builder, signature, arguments):
        machine = builder.module.triple.split("-")[0]
        if machine == "x86_64":
            slot = builder.alloca(I32)
            builder.store(builder.trunc(arguments[0], I32), slot)
            call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), slot)
        elif machine in ("aarch64", "arm64"):
            call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate
