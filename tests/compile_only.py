"""The Triton kernels compiled for GPUs that are not there: what the compiler says of each.

`python compile_only.py [--all]` prints one line of JSON a compilation: spilled bytes, shared memory in bytes,
tensor-core instructions, releases that other threads' stores may come after, loads past the registers, and those of
them that are not after a wait; bytes that a program's instructions copy to shared memory by 16, loads of 16 bytes by a
thread, copies by tensor descriptors, and the counts that it is compiled anew for. It needs neither a GPU nor a driver,
and must run without TRITON_INTERPRET.
"""

import contextlib
import io
import itertools
import json
import sys

import triton
from compiled_code import said
from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu import decode_plan
from seqkernels.kernels.gpu.attention_backward import attention_backward_keys, attention_backward_queries
from seqkernels.kernels.gpu.attention_configs import config_for
from seqkernels.kernels.gpu.attention_decode import attention_combine, attention_decode
from seqkernels.kernels.gpu.attention_forward import attention_forward
from seqkernels.kernels.gpu.primitives import on_blocks
from seqkernels.kernels.gpu.regimes import Device, plan_for
from seqkernels.kernels.gpu.scan_backward import scan_backward
from seqkernels.kernels.gpu.scan_forward import scan_forward
from seqkernels.kernels.gpu.scan_gates import BLOCK, scan_gates
from seqkernels.kernels.gpu.step import step
from seqkernels.kernels.gpu.step_plan import plan_for as step_plan_for
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory is what one program may use; `triton.compile` does not check it.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108, 166_912, cooperative=True, wide=False)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132, 232_448, cooperative=True)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148, 232_448, cooperative=True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 65_536, cooperative=False, wide=False)),
}
SIZES = (64, 512, 2048, 8192)  # one for each regime of bf16
B = 16
BYTES = {"bf16": 2, "fp32": 4}
ATTENTION = {"forward": attention_forward, "keys": attention_backward_keys, "queries": attention_backward_queries}

# Arguments by name: numbers, strides by the end of their names, and what is none of these whatever the dtype.
COUNTS = ("T", "B", "I", "H", "S", "N", "M", "GROUP", "first", "last", "span", "splits", "threshold")
STRIDES = ("direction", "time", "row", "batch", "head", "query", "key")
SPECIAL = {
    "counters": "*i32", "lengths": "*i64", "mask": "*u8", "reset": "*u8", "seed": "*i64", "scale": "fp32",
    "rescale": "fp32",
    **dict.fromkeys(("c_n", "dh", "dc", "reset_u", "fresh_dh", "fresh_dc"), "*fp32"),
    **dict.fromkeys(("lse", "delta", "partial", "sums"), "*fp32"),
}  # fmt: skip
# Of rows that end early or start again.
RAGGED = ("lengths", "reset", "reset_h", "reset_c", "reset_u", "fresh_dh", "fresh_dc")


def scan(kernel, cell, H, dtype, target, ragged=False, precision="tf32"):
    """A report of a scan, compiled: of rows that are all as long, or of ragged ones."""
    device = TARGETS[target][1]
    kind, forward = CELLS[cell], kernel is scan_forward
    plan = plan_for(cell, H, B, 1, BYTES[dtype], device, precision != "tf32")
    constants = {
        "CELL": on_blocks(cell)[0 if forward else 1], "GATES": kind.gates, "STATES": kind.states, "SAVED": kind.saved,
        "REGIME": plan.regime, "UNITS": plan.units, "ROWS": plan.rows, "CHUNK": plan.chunk, "CHUNKS": plan.chunks(H),
        "PRECISION": precision, **({"KEEP": True} if forward else {}),
    }  # fmt: skip
    absent = () if ragged else RAGGED
    if kind.states == 1:
        absent += ("c", "c_0", "c_n", "dc", "reset_c", "fresh_dc")
    if kind.slots.x == kind.slots.u:
        absent += ("du",)
    constants |= {argument: None for argument in absent if argument in kernel.arg_names}
    options = ("ragged",) * ragged + (precision,) * (precision != "tf32")
    name = "-".join((kernel.__name__, cell, dtype, plan.regime, *options, target, f"H{H}"))
    return compiled(name, kernel, constants, dtype, target, {"num_warps": plan.warps, "num_stages": plan.stages})


def gates(cell, dtype, target):
    """A report of the gates of all steps from the states, compiled."""
    kind = CELLS[cell]
    sizes = {"GATES": kind.gates, "STATES": kind.states, "SAVED": kind.saved, **BLOCK}
    constants, name = {"CELL": on_blocks(cell)[0], **sizes}, f"scan_gates-{cell}-{dtype}-{target}"
    return compiled(name, scan_gates, constants, dtype, target, {"num_warps": 4})


def single_step(cell, rows, dtype, target):
    """A report of a step of H = 512, in full precision, compiled."""
    kind, H = CELLS[cell], 512
    plan = step_plan_for(cell, H, rows, BYTES[dtype], TARGETS[target][1].processors)
    constants = {
        "CELL": on_blocks(cell)[0], "GATES": kind.gates, "STATES": kind.states, "UNITS": plan.units, "ROWS": plan.rows,
        "TERMS": plan.terms, "UNROLL": plan.unroll, "PRECISION": "ieee", **({"B": 1} if rows == 1 else {}),
    }  # fmt: skip
    if kind.states == 1:
        constants |= dict.fromkeys(("c", "c_next"))
    name = f"step-{cell}-{dtype}-B{rows}-{target}"
    return compiled(name, step, constants, dtype, target, {"num_warps": plan.warps})


def attention(operation, D, target, option=None):
    """A report of a kernel of causal attention in bf16, compiled: plain, "masked" or "dropped". Blocks are read through
    descriptors where the GPU has them."""
    kernel, dtype, gpu = ATTENTION[operation], "bf16", TARGETS[target][0]
    capability = (gpu.arch // 10, gpu.arch % 10) if gpu.backend == "cuda" else None
    config = config_for(operation, D, BYTES[dtype], capability, option)
    constants = {
        "D": D, "E": D, "BLOCK_D": D, "BLOCK_E": D, "CAUSAL": True, "QUERIES": config.queries, "KEYS": config.keys,
        "PRECISION": "tf32", **({"mask_key": 1} if option == "masked" else {"mask": None}),
        **({} if option == "dropped" else {"seed": None}),
    }  # fmt: skip
    blocks = {}
    if capability is not None and capability >= (9, 0):
        described, rows = (("q", "dout"), config.queries) if operation == "keys" else (("k", "v"), config.keys)
        blocks = dict.fromkeys(described, (1, 1, rows, D))
        constants |= {f"{x}_{axis}": None for x in described for axis in ("batch", "head", "row")}
    name = "-".join(filter(None, (kernel.__name__, str(D), dtype, option, target)))
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return compiled(name, kernel, constants, dtype, target, options, blocks)


def decode(D, rows, masked, target):
    """A report of a range of keys with so many queries a head of keys in bf16, compiled."""
    dtype, device = "bf16", TARGETS[target][1]
    plan = decode_plan.plan_for(rows, D, BYTES[dtype], B, 8192, device.processors)
    constants = {
        "D": D, "E": D, "BLOCK_D": D, "BLOCK_E": D, "CAUSAL": False, "ROWS": plan.rows, "KEYS": plan.keys,
        "STAGES": plan.stages, "PRECISION": "tf32", **({"mask_key": 1} if masked else {"mask": None}),
    }  # fmt: skip
    name = f"{attention_decode.__name__}-{D}-{dtype}-{rows}-{'masked-' * masked}{target}"
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    return compiled(name, attention_decode, constants, dtype, target, options)


def combine(D, target):
    """A report of the sum of all ranges' records in bf16, compiled."""
    constants = {"E": D, "BLOCK_E": D, "SPLITS": decode_plan.combined_at_once(D)}
    name = f"{attention_combine.__name__}-{D}-bf16-{target}"
    return compiled(name, attention_combine, constants, "bf16", target, {"num_warps": 4})


def compiled(name, kernel, constants, dtype, target, options, blocks=()):
    """A report of one compilation, as plain data, as a launch has it where all strides are multiples of 16.

    blocks: of each argument that is a tensor descriptor the shape of its blocks.
    """
    gpu, device = TARGETS[target]
    signature = {n: "constexpr" if n in constants else _type(n, dtype) for n in kernel.arg_names}
    signature |= {n: f"tensordesc<{dtype}{list(shape)}>" for n, shape in dict(blocks).items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (n, kind) in enumerate(signature.items())
        if kind not in ("constexpr", "fp32") and n not in blocks and (n in ("I", "H") or n not in COUNTS)
    }
    source, log = ASTSource(kernel, signature, constants, aligned), io.StringIO()
    with contextlib.redirect_stdout(log):
        made = triton.compile(source, target=gpu, options=options)
    anew = [p.name for p in kernel.params if p.name in COUNTS and (p.is_constexpr or not p.do_not_specialize)]
    shared = {"limit": device.shared, "shared": made.metadata.shared}
    return {"name": name, **shared, "anew": anew, **said(made, log.getvalue())}


def _type(name, dtype):
    if name in SPECIAL:
        return SPECIAL[name]
    return "i32" if name in COUNTS or name.split("_")[-1] in STRIDES else f"*{dtype}"


def wanted(everything):
    """(function, arguments) of each report: of an LSTM in the regimes of every target and of the rest for one; or of
    everything."""
    kernels, nvidia = (scan_forward, scan_backward), ("sm_80", "sm_90", "sm_100")
    chosen = [("lstm", target, "bf16", (16, *SIZES[1:3])) for target in nvidia]
    chosen += [("lstm", "sm_90", "bf16", SIZES[::3])]
    chosen += [("lstm", "gfx942", "bf16", SIZES[::3]), ("lstm", "sm_90", "fp32", SIZES[:2])]
    chosen += [("gru", "sm_90", "bf16", SIZES[1:3])]
    if everything:
        cells = itertools.product(("rnn_tanh", "lstm", "gru"), TARGETS, BYTES)
        chosen = [(*given, (16, *SIZES) if given[1] in nvidia else SIZES[::3]) for given in cells]
    for kernel, (cell, target, dtype, sizes) in itertools.product(kernels, chosen):
        for H in sizes:
            yield scan, (kernel, cell, H, dtype, target)
    for kernel, cell in itertools.product(kernels, ("lstm", "gru") if everything else ("lstm",)):
        for H in SIZES if everything else SIZES[1:3]:
            yield scan, (kernel, cell, H, "bf16", "sm_90", True)
    for kernel, precision in itertools.product(kernels, ("ieee", "tf32x3") if everything else ("ieee",)):
        for H in SIZES[1:] if everything else SIZES[1:2]:
            yield scan, (kernel, "lstm", H, "fp32", "sm_90", False, precision)
    for target in TARGETS if everything else ("sm_80", "sm_90", "gfx942"):
        yield gates, ("lstm", "bf16", target)
    for cell, rows, target in itertools.product(("lstm", "gru"), (1, B), TARGETS):
        if everything or cell == "lstm" or (rows, target) == (1, "sm_90"):
            yield single_step, (cell, rows, "bf16", target)
        if target == "sm_90" and (everything or cell == "lstm"):
            yield single_step, (cell, rows, "fp32", target)
    for operation, D, target in itertools.product(ATTENTION, (64, 128), TARGETS):
        for option in (None, "masked", "dropped") if target == "sm_90" else (None,):
            if everything or D == 64 or (target, option) == ("sm_90", None):
                yield attention, (operation, D, target, option)
    for (D, rows), target in itertools.product(((64, 1), (128, 4)), TARGETS):
        yield decode, (D, rows, False, target)
        yield combine, (D, target)
        if target == "sm_90":
            yield decode, (D, 5 - rows, True, target)


def main():
    triton.knobs.compilation.always_compile = True  # a kernel from the cache comes without the assembler's log
    triton.knobs.nvidia.dump_ptxas_log = True
    for report, arguments in wanted("--all" in sys.argv):
        print(json.dumps(report(*arguments)), flush=True)


if __name__ == "__main__":
    main()
