"""The Triton scans compiled for GPUs that are not there: what the compiler says of each.

`python compile_only.py` prints one line of JSON a compilation: spilled bytes, shared memory in bytes, tensor-core
instructions, releases that other threads' stores may come after, and loads of h that were made ahead of a wait. It
needs neither a GPU nor a driver, and must run without TRITON_INTERPRET.
"""

import contextlib
import io
import itertools
import json
import re

import triton
from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu.primitives import on_blocks
from seqkernels.kernels.gpu.regimes import Device, plan_for
from seqkernels.kernels.gpu.scan_backward import scan_backward
from seqkernels.kernels.gpu.scan_forward import scan_forward
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory is what one program may use; `triton.compile` does not check it.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, 166_912, cooperative=True)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, 232_448, cooperative=True)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, 232_448, cooperative=True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 65_536, cooperative=False)),
}
SIZES = (64, 512, 4096)
B = 16
BYTES = {"bf16": 2, "fp32": 4}


def compiled(kernel, cell, H, dtype, target):
    """A report of one compilation, as plain data."""
    gpu, device = TARGETS[target]
    kind, forward = CELLS[cell], kernel is scan_forward
    plan = plan_for(cell, H, B, 1, BYTES[dtype], device)
    constants = {
        "CELL": on_blocks(cell)[0 if forward else 1], "GATES": kind.gates, "STATES": kind.states, "SAVED": kind.saved,
        "REGIME": plan.regime, "UNITS": plan.units, "ROWS": plan.rows, "CHUNK": plan.chunk, "CHUNKS": plan.chunks(H),
        "PRECISION": "tf32", **({"KEEP": True} if forward else {}),
    }  # fmt: skip
    if kind.states == 1:
        constants |= dict.fromkeys(("c", "c_n") if forward else ("c", "c_0", "dc"))
    if not forward and kind.slots.x == kind.slots.u:
        constants["du"] = None
    signature = {name: _type(name, dtype, constants) for name in kernel.arg_names}
    # As a launch at these sizes has it: pointers, H and all strides are multiples of 16.
    any_integer = ("constexpr", "T", "B", "first", "last")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind_) in enumerate(signature.items())
        if kind_ not in any_integer and name not in any_integer
    }
    source, log = ASTSource(kernel, signature, constants, aligned), io.StringIO()
    with contextlib.redirect_stdout(log):
        made = triton.compile(source, target=gpu, options={"num_warps": plan.warps})
    name = f"{kernel.__name__}-{cell}-{dtype}-{plan.regime}-{target}"
    return {"name": name, "limit": device.shared, "shared": made.metadata.shared, **_read(made, log.getvalue())}


def _type(name, dtype, constants):
    if name in constants:
        return "constexpr"
    if name == "counters":
        return "*i32"
    if name in ("c_n", "dh", "dc"):
        return "*fp32"
    integers = ("T", "B", "H", "first", "last")
    return "i32" if name in integers or name.split("_")[-1] in ("direction", "time", "row") else f"*{dtype}"


def _read(made, log):
    if "amdgcn" in made.asm:
        text = made.asm["amdgcn"]
        # Scalar registers are spilled to lanes of vector registers, not to memory.
        spills = sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)))
        return {"spilled": 4 * spills, "products": len(re.findall("v_mfma", text)), "unordered": 0, "ahead": 0}
    ptx = made.asm["ptx"]
    return {
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log))),
        "products": len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx)),
        "unordered": unordered(ptx),
        "ahead": len(re.findall("async_copy_global_to_local|async_tma_copy_global_to_local", made.asm["ttgir"])),
    }


def unordered(ptx):
    """Releases between which and a store to global memory before them no barrier of the program's threads lies."""
    count, stored = 0, False
    for line in ptx.splitlines():
        if "st.global" in line and "release" not in line:
            stored = True
        elif re.search(r"\b(bar|barrier)\.sync", line):
            stored = False
        elif re.search(r"\.(release|acq_rel)\b", line) and stored:
            count += 1
    return count


def main():
    triton.knobs.compilation.always_compile = True  # a kernel from the cache comes without the assembler's log
    triton.knobs.nvidia.dump_ptxas_log = True
    kernels = (scan_forward, scan_backward)
    for kernel, cell, H, target in itertools.product(kernels, ("lstm", "gru", "rnn_tanh"), SIZES, TARGETS):
        print(json.dumps(compiled(kernel, cell, H, "bf16", target)), flush=True)
        if target == "sm_90":
            print(json.dumps(compiled(kernel, cell, H, "fp32", target)), flush=True)


if __name__ == "__main__":
    main()
