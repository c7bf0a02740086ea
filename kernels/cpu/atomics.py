"""64-bit integers that threads share, at an address in bytes, and what a thread does while it waits for one."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .vector import I32, I64, call


def _pointer(builder, address):
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def fetch_add(typing, address, value):
    """Adds to the integer; gives what it was."""

    def generate(context, builder, signature, arguments):
        address, value = arguments
        return builder.atomic_rmw("add", _pointer(builder, address), value, "seq_cst")

    return types.int64(types.intp, types.int64), generate


@intrinsic
def acquire(typing, address):
    """The integer, and with it all that was written before it was published."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0]), "acquire", 8)

    return types.int64(types.intp), generate


@intrinsic
def publish(typing, address, value):
    """Writes the integer, after all that this thread wrote before."""

    def generate(context, builder, signature, arguments):
        address, value = arguments
        builder.store_atomic(value, _pointer(builder, address), "release", 8)
        return context.get_dummy_value()

    return types.none(types.intp, types.int64), generate


@intrinsic
def pause(typing):
    """Leaves the core's other thread a moment."""

    def generate(context, builder, signature, arguments):
        machine = builder.module.triple.split("-")[0]
        if machine == "x86_64":
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif machine in ("aarch64", "arm64"):
            call(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1))
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def nanoseconds(typing):
    """A clock that only goes forward (Linux; elsewhere 0)."""

    def generate(context, builder, signature, arguments):
        if "linux" not in builder.module.triple:
            return I64(0)
        time = cgutils.alloca_once(builder, ir.ArrayType(I64, 2))
        kind = ir.FunctionType(I32, [I32, time.type])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "clock_gettime"), [I32(1), time])
        seconds, rest = (builder.extract_value(builder.load(time), i) for i in (0, 1))
        return builder.add(builder.mul(seconds, I64(10**9)), rest)

    return types.int64(), generate


@intrinsic
def give_way(typing):
    """Lets the system run another thread on this core (POSIX; elsewhere nothing)."""

    def generate(context, builder, signature, arguments):
        if "windows" not in builder.module.triple:
            kind = ir.FunctionType(I32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.none(), generate
