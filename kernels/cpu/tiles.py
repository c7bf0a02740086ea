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
from .vector import I8, I32, Int, Lanes, Mask, Vector, below, fma, load_vector, pointer, splat, store_vector


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
        places = _addresses(builder, like, base, step)
        return pack(builder, like, [load_vector(builder, like.lanes, place).value for place in places])

    return like(like, types.intp, types.intp), generate


@intrinsic
def store(typing, tile, p, stride):
    def generate(context, builder, signature, arguments):
        array, base, step = arguments
        for value, address in zip(unpack(builder, tile, array), _addresses(builder, tile, base, step)):
            store_vector(Vector(builder, tile.lanes, value), address)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp), generate


@intrinsic
def add(typing, x, y):
    def generate(context, builder, signature, arguments):
        pairs = zip(*(unpack(builder, x, array) for array in arguments))
        return pack(builder, x, [builder.fadd(a, b) for a, b in pairs])

    return x(x, x), generate


def _broadcast(builder, lanes, address):
    scalar = builder.load(pointer(builder, address, lanes.element), align=lanes.size)
    return Vector(builder, lanes, splat(builder, scalar, lanes.count))


def emit_outer(builder, tile, values, a, stride, b):
    """The tile's vectors `values` plus one term of a product: column a (rows `stride` apart) times the row at b."""
    lanes, size = tile.lanes, tile.size
    row = [load_vector(builder, lanes, (b + j * lanes.count * size).value) for j in range(tile.n)]
    result = []
    for i in range(tile.m):
        factor = _broadcast(builder, lanes, (a + stride * (i * size)).value)
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
    place = pointer(builder, address.value, I8)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32]), "llvm.prefetch.p0"
    )
    builder.call(function, [place, I32(0), I32(3), I32(1)])


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
        """The Mask of the lanes whose index is below the Int `count`, as `vector.below` has it."""
        return Mask(self.builder, below(self.builder, count.value, self.width))

    def load(self, address, mask=None, stored=None):
        """The vector at an address (Int); lanes outside the mask are not read and give zero. stored: bytes of an
        element in memory where they are not those of a lane: 2, bfloat16."""
        if stored == narrow.BFLOAT16:
            return narrow.load(self.builder, self.lanes, address.value, mask)
        return load_vector(self.builder, self.lanes, address.value, mask)

    def broadcast(self, address):
        """The one element at an address, in every lane."""
        return _broadcast(self.builder, self.lanes, address.value)

    def store(self, vector, address, mask=None, stored=None):
        """Write a vector; lanes outside the mask are left as they are. stored: as in `load`."""
        if stored == narrow.BFLOAT16:
            narrow.store(vector, address.value, mask)
        else:
            store_vector(vector, address.value, mask)


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
