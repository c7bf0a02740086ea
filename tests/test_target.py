"""Instruction sets and the tile shapes that follow; AVX2 runs, and NEON code is assembled and read."""

import re
import subprocess
import sys

import llvmlite.binding as llvm
import pytest
from seqkernels.kernels.cpu import target

AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"}

CASES = [
    ("x86_64-unknown-linux-gnu", "+avx512f,+avx2,+fma", "AVX-512", 16, {4: 6, 3: 8, 1: 8}),
    ("x86_64-unknown-linux-gnu", "+avx2,+fma,-avx512f", "AVX2", 8, {4: 2, 3: 4, 1: 8}),
    ("x86_64-unknown-linux-gnu", "+sse4.2", "128-bit", 4, {4: 2, 3: 4, 1: 8}),
    ("aarch64-unknown-linux-gnu", "+neon", "NEON", 4, {4: 6, 3: 8, 1: 8}),
]


@pytest.mark.parametrize("triple, features, name, lanes, rows", CASES, ids=[c[2] for c in CASES])
def test_shapes_follow_from_the_instruction_set(triple, features, name, lanes, rows):
    described = target.describe(triple, "any", features)
    assert described.name == name
    assert (described.lanes(4), described.lanes(8)) == (lanes, lanes // 2)
    assert {n: described.rows(n) for n in rows} == rows
    for n in range(1, 5):  # accumulators, a row of the other operand and a broadcast fit the registers
        assert described.rows(n) * n + n + 1 <= described.registers


SCAN = """
import sys
import torch
from seqkernels.kernels.cpu import target
from seqkernels.ops import scan_cpu
assert target.current().name == "AVX2", target.current()
torch.set_num_threads(1)
kind, cell = getattr(torch.nn, sys.argv[1]), sys.argv[2]
module = kind(9, 21).double()
weights = [p.detach() for p in module.parameters()]
x, h = torch.randn(5, 7, 9, dtype=torch.float64, requires_grad=True), torch.zeros(1, 7, 21, dtype=torch.float64)
c = h if cell == "lstm" else None
dy = torch.randn(5, 7, 21, dtype=torch.float64)
wanted = module(x)[0]
gradients = torch.autograd.grad(wanted, [x, *module.parameters()], dy)
y, _, _, states, gates = scan_cpu.forward(cell, x.detach(), h, c, weights, False, True)
args = (x.detach(), h, c, weights, states, gates, False, True, True)
dx, _, _, dw = scan_cpu.backward(cell, dy, None, None, *args)
for ours, theirs in zip((y, dx, *dw), (wanted, *gradients)):
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
print("agrees")
"""


SLOW = pytest.mark.slow
CELLS = [("LSTM", "lstm"), pytest.param("GRU", "gru", marks=SLOW), pytest.param("RNN", "rnn_tanh", marks=SLOW)]


@pytest.mark.skipif(target.current().triple.split("-")[0] != "x86_64", reason="AVX2 is an x86-64 instruction set")
@pytest.mark.skipif(target.current().name == "AVX2", reason="all tests run on AVX2 here")
@pytest.mark.parametrize("module, cell", CELLS)
def test_avx2_scan_agrees_with_torch(module, cell, kernel_environment):
    command = [sys.executable, "-c", SCAN, module, cell]
    done = subprocess.run(command, env={**kernel_environment, **AVX2}, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "agrees", done.stderr


NEON = """
from numba import njit
from numba.core import types
from seqkernels.kernels.cpu import scan_forward, target
target.current = lambda: target.describe("aarch64-unknown-linux-gnu", "generic", "+neon")
function = scan_forward.build(cell="lstm", size=4, save=False, stored=4, weight=4)
function.compile(tuple([types.intp] * len(scan_forward.ARGUMENTS)))
print(function.inspect_llvm(function.signatures[0]))
"""


def test_neon_code_keeps_its_accumulators_in_registers(kernel_environment):
    """The kernel's LLVM code for 4 lanes, assembled for an Arm machine: fused multiply-adds on vectors, none of them
    a call, and the inner loop of the largest tile without a spill."""
    done = subprocess.run(
        [sys.executable, "-c", NEON], env=kernel_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    source = re.sub(r'target triple = ".*"', 'target triple = "aarch64-unknown-linux-gnu"', done.stdout)
    source = re.sub(r'target datalayout = ".*"\n', "", source)
    source = re.sub(r".*@llvm\.x86\.sse2\.pause\(\).*\n", "", source)  # how the machine that compiles this waits
    module = llvm.parse_assembly(source)
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(cpu="neoverse-n1", opt=3)
    assembly = machine.emit_assembly(module)
    assert not re.search(r"\bbl\s+fma", assembly)
    loops = re.split(r"\n\.LBB\w+:", assembly)
    inner = max(loops, key=lambda text: len(re.findall(r"\bfmla\b", text)))
    assert len(re.findall(r"\bfmla\s+v", inner)) >= 24, inner
    assert not re.search(r"\b(str|stp|ldr|ldp)\s+q\d+.*\[sp", inner), inner
