"""Vectors while a kernel is being compiled: ordinary Python operators that emit LLVM instructions.

A `Vector` stands for one register of `lanes` floats, a `Mask` for a lane-wise truth value, an `Int` for a 64-bit
integer (sizes, and addresses in bytes). Code over them is straight-line Python that runs once, at compile time. No
fast-math flag but `contract` is used, so NaN and infinities go through as IEEE 754 has them.
"""

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


class Lanes:
    """The type of a vector: `count` lanes of `size` bytes (4: float32, 8: float64)."""

    def __init__(self, size, count):
        self.size, self.count = size, count
        self.element = ir.DoubleType() if size == 8 else ir.FloatType()
        self.floats = ir.VectorType(self.element, count)
        self.ints = ir.VectorType(I64 if size == 8 else I32, count)
        self.bools = ir.VectorType(I1, count)
        self.suffix = f"v{count}f{8 * size}"

    def constant(self, value):
        """An ir.Constant with `value` in every lane."""
        return ir.Constant(self.floats, [value] * self.count)

    def constant_int(self, value):
        return ir.Constant(self.ints, [value] * self.count)


def call(builder, name, result, *arguments):
    """Call the LLVM intrinsic `name`."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, list(arguments))


def pointer(builder, address, kind):
    """An address (i64) as a pointer."""
    return builder.inttoptr(address, kind.as_pointer())


def splat(builder, scalar, count):
    """A scalar, of any type, in each of `count` lanes."""
    empty = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    one = builder.insert_element(empty, scalar, I32(0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(I32, count), [0] * count))


def below(builder, limit, count, kind=I32):
    """Which of `count` lanes have an index below `limit`, an i64 that may be as large, but not as small, as it likes:
    at least the smallest integer of `kind`."""
    few = builder.icmp_signed("<", limit, I64(count))
    limit = splat(builder, builder.trunc(builder.select(few, limit, I64(count)), kind), count)
    return builder.icmp_signed("<", ir.Constant(ir.VectorType(kind, count), list(range(count))), limit)


class Int:
    """A 64-bit integer at run time; + and * with Ints and Python integers."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def _other(self, other):
        return other.value if isinstance(other, Int) else I64(other)

    def __add__(self, other):
        return Int(self.builder, self.builder.add(self.value, self._other(other)))

    def __sub__(self, other):
        return Int(self.builder, self.builder.sub(self.value, self._other(other)))

    def __mul__(self, other):
        return Int(self.builder, self.builder.mul(self.value, self._other(other)))

    __radd__ = __add__
    __rmul__ = __mul__


class Mask:
    """A truth value a lane."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def __and__(self, other):
        return Mask(self.builder, self.builder.and_(self.value, other.value))

    def __invert__(self):
        return Mask(self.builder, self.builder.not_(self.value))


class Vector:
    """One register of floats."""

    def __init__(self, builder, lanes, value):
        self.builder, self.lanes, self.value = builder, lanes, value

    def new(self, value):
        """A Vector of this one's kind."""
        return Vector(self.builder, self.lanes, value)

    def of(self, other):
        """`other` as a Vector: a Vector itself, or a Python number in every lane."""
        return other if isinstance(other, Vector) else self.new(self.lanes.constant(float(other)))

    def _binary(self, other, emit):
        return self.new(getattr(self.builder, emit)(self.value, self.of(other).value, flags=("contract",)))

    def __add__(self, other):
        return self._binary(other, "fadd")

    def __sub__(self, other):
        return self._binary(other, "fsub")

    def __mul__(self, other):
        return self._binary(other, "fmul")

    def __truediv__(self, other):
        return self._binary(other, "fdiv")

    def __rsub__(self, other):
        return self.of(other) - self

    def __rtruediv__(self, other):
        return self.of(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self):
        return self.new(self.builder.fneg(self.value))

    def _compare(self, other, sign):
        return Mask(self.builder, self.builder.fcmp_ordered(sign, self.value, self.of(other).value))

    def __lt__(self, other):
        return self._compare(other, "<")

    def __le__(self, other):
        return self._compare(other, "<=")

    def __gt__(self, other):
        return self._compare(other, ">")

    def __ge__(self, other):
        return self._compare(other, ">=")

    def unary(self, name):
        """The LLVM intrinsic `name` (rint, fabs, floor, ...) of every lane."""
        return self.new(call(self.builder, f"llvm.{name}.{self.lanes.suffix}", self.lanes.floats, self.value))

    def bits(self):
        """The lanes' bit patterns, an integer ir value."""
        return self.builder.bitcast(self.value, self.lanes.ints)

    def from_bits(self, ints):
        return self.new(self.builder.bitcast(ints, self.lanes.floats))


def fma(x, y, z):
    """x y + z; fused where the target has the instruction (fmuladd: never a call into libm)."""
    floats = x.lanes.floats
    return x.new(call(x.builder, f"llvm.fmuladd.{x.lanes.suffix}", floats, x.value, x.of(y).value, x.of(z).value))


def load_vector(builder, lanes, address, mask=None):
    """The Vector at an address (i64); lanes outside the Mask are not read and give zero."""
    place = pointer(builder, address, lanes.floats)
    if mask is None:
        return Vector(builder, lanes, builder.load(place, align=lanes.size))
    name, zero = f"llvm.masked.load.{lanes.suffix}.p0", lanes.constant(0.0)
    return Vector(builder, lanes, call(builder, name, lanes.floats, place, I32(lanes.size), mask.value, zero))


def store_vector(vector, address, mask=None):
    """Writes a Vector to an address (i64); lanes outside the Mask are left as they are."""
    builder, lanes = vector.builder, vector.lanes
    place = pointer(builder, address, lanes.floats)
    if mask is None:
        builder.store(vector.value, place, align=lanes.size)
    else:
        name = f"llvm.masked.store.{lanes.suffix}.p0"
        call(builder, name, ir.VoidType(), vector.value, place, I32(lanes.size), mask.value)


def select(mask, x, y):
    """x where mask, else y."""
    return x.new(x.builder.select(mask.value, x.value, x.of(y).value))


def maximum(x, y):
    """The larger of x and y; y where either is NaN. Compare and select: llvm.maxnum would drop a NaN."""
    y = x.of(y)
    return select(x > y, x, y)


def minimum(x, y):
    """The smaller of x and y; y where either is NaN."""
    y = x.of(y)
    return select(x < y, x, y)
