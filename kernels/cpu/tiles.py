"""Register tiles for Numba: m rows of n vectors, float32 or float64, held in registers.

A tile is a Numba value (an LLVM array of vectors); loops over tiles are ordinary Numba loops. Addresses are integers in
bytes, strides are in elements. The vector's width comes from the target that Numba generates code for.

    zeros(m, n, size)            a tile of zeros; the three are compile-time constants, size the bytes of an element
    load(like, p, stride)        rows `stride` elements apart (0: one row for all)
    store(tile, p, stride)
    add(x, y)
    outer(tile, a, stride, b)    one k step of a product: tile[i, :] += a[i * stride] * b[0 : n W]
    prefetch(p)
    @tile_op                     straight-line Python over a tile's vectors, run once, when a kernel is compiled
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from . import narrow, target
from .vector import I8, I32, I64, Int, Lanes, Mask, Vector, call, fma


class Tile(types.Type):
    """The Numba type of a tile of m rows of n vectors."""

    def __init__(self, m, n, size):
        self.m, self.n, self.size = m, n, size
        self.lanes = Lanes(size, target.current().lanes(size))
        self.registers = ir.ArrayType(self.lanes.floats, m * n)
        super().__init__(name=f"Tile({m}, {n}, float{8 * size})")


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, tile):
        super().__init__(manager, tile, tile.registers)


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder, lanes, address):
    return builder.load(_pointer(builder, address, lanes.floats), align=lanes.size)


def _load_vector(builder, lanes, address):
    return Vector(builder, lanes, _load(builder, lanes, address))


def _splat(builder, lanes, scalar):
    one = builder.insert_element(ir.Constant(lanes.floats, ir.Undefined), scalar, I32(0))
    zero = ir.Constant(ir.VectorType(I32, lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(one, ir.Constant(lanes.floats, ir.Undefined), zero)


def _addresses(builder, tile, base, stride):
    """The address of every vector of a tile, row by row."""
    base, stride = Int(builder, base), Int(builder, stride) * tile.size
    width = tile.lanes.count * tile.size
    return [(base + stride * i + j * width).value for i in range(tile.m) for j in range(tile.n)]


def pack(builder, tile, values):
    array = ir.Constant(tile.registers, ir.Undefined)
    for index, value in enumerate(values):
        array = builder.insert_value(array, value, index)
    return array


def unpack(builder, tile, array):
    return [builder.extract_value(array, index) for index in range(tile.m * tile.n)]


@intrinsic(prefer_literal=True)
def zeros(typing, m, n, size):
    tile = Tile(m.literal_value, n.literal_value, size.literal_value)

    def generate(context, builder, signature, arguments):
        return pack(builder, tile, [tile.lanes.constant(0.0)] * (tile.m * tile.n))

    return tile(m, n, size), generate


@intrinsic
def load(typing, like, p, stride):
    def generate(context, builder, signature, arguments):
        _, base, step = arguments
        return pack(builder, like, [_load(builder, like.lanes, a) for a in _addresses(builder, like, base, step)])

    return like(like, types.intp, types.intp), generate


@intrinsic
def store(typing, tile, p, stride):
    def generate(context, builder, signature, arguments):
        array, base, step = arguments
        for value, address in zip(unpack(builder, tile, array), _addresses(builder, tile, base, step)):
            builder.store(value, _pointer(builder, address, tile.lanes.floats), align=tile.size)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp), generate


@intrinsic
def add(typing, x, y):
    def generate(context, builder, signature, arguments):
        pairs = zip(*(unpack(builder, x, array) for array in arguments))
        return pack(builder, x, [builder.fadd(a, b) for a, b in pairs])

    return x(x, x), generate


def emit_outer(builder, tile, values, a, stride, b):
    """The tile's vectors `values` plus one term of a product: column a (rows `stride` apart) times the row at b."""
    lanes, size = tile.lanes, tile.size
    row = [_load_vector(builder, lanes, (b + j * lanes.count * size).value) for j in range(tile.n)]
    result = []
    for i in range(tile.m):
        scalar = builder.load(_pointer(builder, (a + stride * (i * size)).value, lanes.element), align=size)
        factor = Vector(builder, lanes, _splat(builder, lanes, scalar))
        for j in range(tile.n):
            result.append(fma(factor, row[j], Vector(builder, lanes, values[i * tile.n + j])).value)
    return result


@intrinsic
def outer(typing, tile, a, stride, b):
    def generate(context, builder, signature, arguments):
        array, *places = arguments
        places = [Int(builder, v) for v in places]
        return pack(builder, tile, emit_outer(builder, tile, unpack(builder, tile, array), *places))

    return tile(tile, types.intp, types.intp, types.intp), generate


def emit_prefetch(builder, address):
    pointer = _pointer(builder, address.value, I8)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32]), "llvm.prefetch.p0"
    )
    builder.call(function, [pointer, I32(0), I32(3), I32(1)])


@intrinsic
def prefetch(typing, p):
    def generate(context, builder, signature, arguments):
        emit_prefetch(builder, Int(builder, arguments[0]))
        return context.get_dummy_value()

    return types.void(types.intp), generate


class Frame:
    """A tile's registers during compilation, with the operation's integers (addresses, strides, sizes).

    `tile[i][j]` are Vectors and may be replaced; what stands there at the end is the operation's result.
    """

    def __init__(self, builder, tile, array, integers):
        self.builder, self.lanes, self.m, self.n = builder, tile.lanes, tile.m, tile.n
        self.width = tile.lanes.count
        vectors = [Vector(builder, tile.lanes, v) for v in unpack(builder, tile, array)]
        self.tile = [vectors[i * tile.n : (i + 1) * tile.n] for i in range(tile.m)]
        self.integers = [Int(builder, v) for v in integers]

    def constant(self, value):
        return Vector(self.builder, self.lanes, self.lanes.constant(float(value)))

    def below(self, count):
        """The Mask of the lanes whose index is below the Int `count` (which may be negative, or large)."""
        wide = ir.VectorType(I32, self.width)
        few = self.builder.icmp_signed("<", count.value, I64(self.width))
        at_most = self.builder.select(few, count.value, I64(self.width))
        positive = self.builder.icmp_signed(">", at_most, I64(0))
        narrow = self.builder.trunc(self.builder.select(positive, at_most, I64(0)), I32)
        one = self.builder.insert_element(ir.Constant(wide, ir.Undefined), narrow, I32(0))
        limit = self.builder.shuffle_vector(one, ir.Constant(wide, ir.Undefined), ir.Constant(wide, [0] * self.width))
        index = ir.Constant(wide, list(range(self.width)))
        return Mask(self.builder, self.builder.icmp_signed("<", index, limit))

    def load(self, address, mask=None, stored=None):
        """The vector at an address (Int); lanes outside the mask are not read and give zero. stored: bytes of an
        element in memory where they are not those of a lane: 2, bfloat16."""
        if stored == narrow.BFLOAT16:
            return narrow.load(self.builder, self.lanes, address.value, mask)
        if mask is None:
            return _load_vector(self.builder, self.lanes, address.value)
        pointer = _pointer(self.builder, address.value, self.lanes.floats)
        name = f"llvm.masked.load.{self.lanes.suffix}.p0"
        align = I32(self.lanes.size)
        value = call(self.builder, name, self.lanes.floats, pointer, align, mask.value, self.lanes.constant(0.0))
        return Vector(self.builder, self.lanes, value)

    def broadcast(self, address):
        """The one element at an address, in every lane."""
        scalar = self.builder.load(_pointer(self.builder, address.value, self.lanes.element), align=self.lanes.size)
        return Vector(self.builder, self.lanes, _splat(self.builder, self.lanes, scalar))

    def store(self, vector, address, mask=None, stored=None):
        """Write a vector; lanes outside the mask are left as they are. stored: as in `load`."""
        if stored == narrow.BFLOAT16:
            narrow.store(vector, address.value, mask)
            return
        pointer = _pointer(self.builder, address.value, self.lanes.floats)
        if mask is None:
            self.builder.store(vector.value, pointer, align=self.lanes.size)
        else:
            name = f"llvm.masked.store.{self.lanes.suffix}.p0"
            call(self.builder, name, ir.VoidType(), vector.value, pointer, I32(self.lanes.size), mask.value)


def tile_op(function):
    """A Numba operation op(tile, integers) -> tile from `function(Frame)`; integers: a tuple of intp."""

    @intrinsic
    def operation(typing, tile, integers):
        def generate(context, builder, signature, arguments):
            values = cgutils.unpack_tuple(builder, arguments[1])
            values = [context.cast(builder, v, t, types.intp) for v, t in zip(values, signature.args[1].types)]
            frame = Frame(builder, tile, arguments[0], values)
            function(frame)
            return pack(builder, tile, [vector.value for row in frame.tile for vector in row])

        return tile(tile, integers), generate

    return operation


@tile_op
def transpose(frame):
    """The transpose of a W x 1 tile: log2 W rounds of interleaving row i with row i + W / 2."""
    width, builder = frame.width, frame.builder
    halves = [[x for i in range(width // 2) for x in (i + h, i + h + width)] for h in (0, width // 2)]
    shuffles = [ir.Constant(ir.VectorType(I32, width), half) for half in halves]
    rows = [row[0].value for row in frame.tile]
    for _ in range(width.bit_length() - 1):
        pairs = zip(rows[: width // 2], rows[width // 2 :])
        rows = [builder.shuffle_vector(a, b, shuffle) for a, b in pairs for shuffle in shuffles]
    for row, value in zip(frame.tile, rows):
        row[0] = frame.tile[0][0].new(value)
