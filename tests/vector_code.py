"""Functions of a Vector as machine code of several instruction sets: run over NumPy arrays, or read."""

import ctypes
import platform
import re

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from seqkernels.kernels.cpu.vector import I64, Lanes, Vector

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
# name: (triple, processor, features, bytes of a vector). "plain" has neither wide vectors nor fused multiply-add.
TARGETS = {
    "avx512": (X86, "skylake-avx512", "+avx512f,+avx512vl,+avx512dq,+avx2,+fma,-prefer-256-bit", 64),
    "avx2": (X86, "haswell", "+avx2,+fma", 32),
    "plain": (X86, "x86-64", "", 16),
    "neon": (ARM, "generic", "+neon", 16),
}


def of_this_architecture(target):
    names = {X86: ("x86_64", "AMD64"), ARM: ("aarch64", "arm64")}
    return platform.machine() in names[TARGETS[target][0]]


def runs_here(target):
    here = llvm.get_host_cpu_features()
    return of_this_architecture(target) and all(here.get(f) for f in re.findall(r"\+(\w+)", TARGETS[target][2]))


def build(function, size, target):
    """An optimised module whose run(in, out, bytes) applies `function` to every vector, and its code generator."""
    triple, cpu, features, width = TARGETS[target]
    lanes = Lanes(size, width // size)
    module = ir.Module()
    run = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 3), "run")
    entry, loop, end = (run.append_basic_block(name) for name in ("entry", "loop", "end"))
    builder = ir.IRBuilder(entry)
    builder.branch(loop)
    builder.position_at_end(loop)
    offset = builder.phi(I64)
    source, sink = (builder.inttoptr(builder.add(a, offset), lanes.floats.as_pointer()) for a in run.args[:2])
    builder.store(function(Vector(builder, lanes, builder.load(source, align=size))).value, sink, align=size)
    after = builder.add(offset, I64(width))
    offset.add_incoming(I64(0), entry)
    offset.add_incoming(after, loop)
    builder.cbranch(builder.icmp_unsigned("<", after, run.args[2]), loop, end)
    builder.position_at_end(end)
    builder.ret_void()

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu, features, opt=3)
    parsed = llvm.parse_assembly(str(module))
    parsed.triple = triple
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return parsed, machine


def compiled(function, size, target):
    """`function` over a NumPy array."""
    module, machine = build(function, size, target)
    engine = llvm.create_mcjit_compiler(module, machine)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(engine.get_function_address("run"))

    def over(x):
        padded = np.concatenate([x, np.zeros(-len(x) % (TARGETS[target][3] // size), x.dtype)])
        y = np.empty_like(padded)
        run(padded.ctypes.data, y.ctypes.data, padded.nbytes)
        return y[: len(x)]

    over.engine = engine  # owns the code
    return over


def instructions(function, size, target):
    """The mnemonics of build's `run`."""
    module, machine = build(function, size, target)
    return re.findall(r"^\t([a-z]\S*)", machine.emit_assembly(module), re.MULTILINE)
