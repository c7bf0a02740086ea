"""What one thread of this machine can do at most: operations a second in registers, bytes a second from each level of
its memory. The best of several samples is kept: a ceiling is what was seen once."""

from functools import partial

import torch

from . import machine, timing

SAMPLES, SAMPLE_SECONDS = 25, 5e-3
LEAST_MEMORY = 2**28  # bytes that are read where no cache should hold them
MATRIX = 1024


def measure():
    """{"operations": {dtype: operations a second}, "levels": [[name, bytes, or None for memory, bytes a second]]}.

    Operations are those of a product, a multiplication and an addition counting two. bfloat16: the fastest of the
    processor's dot instruction, torch's own product, which may know another (AMX), and float32.
    """
    sizes = machine.cache_bytes()
    beyond = max(LEAST_MEMORY, 2 * max(sizes.values()))
    found = _rates({
        **{"float32": _multiply_adds(4), "float64": _multiply_adds(8), "dots": _dots(), "torch": _torch_product()},
        **{name: _reads(size // 2) for name, size in sizes.items()},
        "memory": _reads(beyond),
    })  # fmt: skip
    bfloat16 = max(found["float32"], found["dots"], found["torch"])
    return {
        "operations": {"float32": found["float32"], "float64": found["float64"], "bfloat16": bfloat16},
        "levels": [[name, sizes.get(name), found[name]] for name in (*sizes, "memory")],
    }


def _rates(probes):
    """Name -> work a second of the fastest sample. probes: name -> (call(repeats), the work of one repeat), or None.

    The samples of one lie among those of the others, so that what disturbs the machine for a while finds few of them.
    """
    there = {name: probe for name, probe in probes.items() if probe}
    repeats, fastest = {}, dict.fromkeys(probes, 0.0)
    for name, (call, _) in there.items():
        call(1)  # compiles
        repeats[name] = 1
        while timing.wall(partial(call, repeats[name]), 1) < SAMPLE_SECONDS:
            repeats[name] *= 2
    for _ in range(SAMPLES):
        for name, (call, work) in there.items():
            rate = work * repeats[name] / timing.wall(partial(call, repeats[name]), 1)
            fastest[name] = max(fastest[name], rate)
    return fastest


def _multiply_adds(size):
    """Multiply-adds on a tile that stays in registers, as many chains as they can hold; its work is operations."""
    from numba import njit
    from seqkernels.kernels.cpu import target
    from seqkernels.kernels.cpu.tiles import load, store, tile_op, zeros
    from seqkernels.kernels.cpu.vector import fma

    rows, lanes = target.current().registers - 4, target.current().lanes(size)

    @tile_op
    def term(frame):
        half = frame.broadcast(frame.integers[0])
        for row in frame.tile:
            row[0] = fma(row[0], half, half)

    @njit(nogil=True)
    def run(p, result, repeats):
        tile = load(zeros(rows, 1, size), p, lanes)  # other memory a row: equal rows would become one
        for _ in range(repeats):
            tile = term(tile, (p,))
        store(tile, result, lanes)

    dtype = torch.float32 if size == 4 else torch.float64
    halves, result = torch.full((2, rows * lanes), 0.5, dtype=dtype)
    return lambda repeats: run(halves.data_ptr(), result.data_ptr(), repeats), 2 * rows * lanes


def _dots():
    """The same of AVX-512's dot products of bfloat16 pairs; None where there are none."""
    from llvmlite import ir
    from numba import njit
    from seqkernels.kernels.cpu import target
    from seqkernels.kernels.cpu.tiles import load, store, tile_op, zeros
    from seqkernels.kernels.cpu.vector import call

    if target.current().bits != 512 or "+avx512bf16" not in target.current().features.split(","):
        return None
    rows, lanes, pairs = target.current().registers - 4, 16, _bfloat16_vector(ir)

    @tile_op
    def term(frame):
        one = frame.builder.bitcast(frame.broadcast(frame.integers[0]).value, pairs)
        for row in frame.tile:
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            row[0] = row[0].new(call(frame.builder, name, frame.lanes.floats, row[0].value, one, one))

    @njit(nogil=True)
    def run(p, result, repeats):
        tile = load(zeros(rows, 1, 4), p, lanes)
        for _ in range(repeats):
            tile = term(tile, (p,))
        store(tile, result, lanes)

    ones, result = torch.ones(2, 2 * rows * lanes, dtype=torch.bfloat16)
    return lambda repeats: run(ones.data_ptr(), result.data_ptr(), repeats), 4 * rows * lanes


def _bfloat16_vector(ir):
    """LLVM's <32 x bfloat>, whose element llvmlite has no type for."""

    class BFloat(ir.types._BaseFloatType):
        null, intrinsic_name = "0.0", "bf16"

        def __str__(self):
            return "bfloat"

    BFloat._create_instance()
    return ir.VectorType(BFloat(), 32)


def _torch_product():
    a = torch.ones(MATRIX, MATRIX, dtype=torch.bfloat16)
    out = torch.empty_like(a)

    def run(repeats):
        for _ in range(repeats):
            torch.mm(a, a, out=out)

    return run, 2 * MATRIX**3


def _reads(size):
    """Sums over a buffer of `size` bytes, which is read over and over; its work is bytes."""
    from numba import njit
    from seqkernels.kernels.cpu import target
    from seqkernels.kernels.cpu.tiles import add, load, store, zeros

    from seqkernels.ops.workspace import on_huge_pages

    rows, lanes = target.current().registers // 2, target.current().lanes(4)
    block = rows * lanes * 4
    size -= size % block

    @njit(nogil=True)
    def run(p, result, repeats):
        tile = zeros(rows, 1, 4)
        for _ in range(repeats):
            for offset in range(0, size, block):
                tile = add(tile, load(tile, p + offset, lanes))
        store(tile, result, lanes)

    buffer, result = on_huge_pages(torch.empty(size // 4)).fill_(1), torch.empty(block // 4)
    return lambda repeats: run(buffer.data_ptr(), result.data_ptr(), repeats), size
