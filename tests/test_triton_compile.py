"""The Triton kernels as the compiler leaves them, for GPUs that need not be there (tests/compile_only.py)."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from seqkernels.kernels.cells import CELLS

# name, of a scan without its size: the most bytes that may be spilled, and why
SPILLS = {
    "scan_forward-gru-bf16-whole-sm_100": (16, "blocks not chosen for sm_100"),
    "scan_backward-lstm-fp32-grid-sm_90": (128, "float32 operands of four gates in 8 warps"),
    "scan_backward-lstm-fp32-grid-sm_100": (128, "float32 operands of four gates in 8 warps"),
    "scan_forward-lstm-bf16-grid-ragged-sm_90": (256, "what reset states add before each product; not tuned"),
    "scan_backward-lstm-bf16-grid-ragged-sm_90": (128, "masks and the states to start again from; not tuned"),
    "scan_backward-gru-bf16-grid-ragged-sm_90": (128, "masks and the states to start again from; not tuned"),
    "scan_backward-lstm-bf16-whole-ragged-sm_90": (128, "the same on 64 units; not tuned"),
    "scan_backward-lstm-bf16-streamed-ragged-sm_90": (64, "masks and the states to start again from; not tuned"),
    "scan_backward-gru-bf16-streamed-ragged-sm_90": (64, "masks and the states to start again from; not tuned"),
    "scan_backward-lstm-bf16-stepwise-ragged-sm_90": (64, "masks and the states to start again from; not tuned"),
    "scan_backward-gru-bf16-stepwise-ragged-sm_90": (64, "masks and the states to start again from; not tuned"),
    "attention_backward_keys-64-bf16-gfx942": (160, "blocks not chosen for gfx942"),
    "attention_backward_keys-128-bf16-gfx942": (512, "blocks not chosen for gfx942"),
    "attention_backward_queries-128-bf16-gfx942": (512, "blocks not chosen for gfx942"),
}


@pytest.fixture(scope="module", params=[(), pytest.param(("--all",), marks=pytest.mark.slow)], ids=["", "all"])
def reports(request):
    """By name."""
    program = Path(__file__).with_name("compile_only.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, program, *request.param]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    named = {report["name"]: report for report in found}
    assert len(named) == len(found), "a report hides another of its name"
    return named


def test_every_kernel_and_regime_is_compiled(reports):
    for kernel in ("scan_forward", "scan_backward"):
        for regime in ("whole", "grid", "streamed", "stepwise"):
            assert any(name.startswith(f"{kernel}-lstm-bf16-{regime}-sm_90") for name in reports)
    for rows, target in itertools.product((1, 16), ("sm_80", "sm_90", "sm_100", "gfx942")):
        assert f"step-lstm-bf16-B{rows}-{target}" in reports
    for target in ("sm_80", "sm_90", "gfx942"):
        assert f"scan_gates-lstm-bf16-{target}" in reports
    for kernel in ("attention_forward", "attention_backward_keys", "attention_backward_queries"):
        for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
            assert f"{kernel}-64-bf16-{target}" in reports
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        for kernel in ("attention_decode-64-bf16-1", "attention_decode-128-bf16-4", "attention_combine-128-bf16"):
            assert f"{kernel}-{target}" in reports
    assert not any("grid-gfx942" in name for name in reports), "only NVIDIA lets programs wait for each other"


def allowed(name):
    """The most bytes that may be spilled."""
    return SPILLS.get(re.sub(r"-H\d+$", "", name), (0, ""))[0]


def test_nothing_is_spilled(reports):
    spilled = {name: r["spilled"] for name, r in reports.items() if r["spilled"] > allowed(name)}
    assert not spilled


def test_shared_memory_fits(reports):
    assert not {name: r["shared"] for name, r in reports.items() if r["shared"] > r["limit"]}


def test_products_run_on_tensor_cores(reports):
    one_row = "attention_decode-.*-1-|step-.*-(fp32|bf16-B1)-|.*-ieee-"
    alone = re.compile(f"attention_combine|scan_gates|{one_row}")
    assert not [name for name, r in reports.items() if not r["products"] and not alone.match(name)]


def test_attention_reads_blocks_through_descriptors_where_there_are_any(reports):
    """From sm_90 on, and then the loop copies nothing itself."""
    attention = {name: r for name, r in reports.items() if re.match("attention_(forward|backward)", name)}
    for name, r in attention.items():
        newer = name.endswith(("sm_90", "sm_100"))
        assert (r["described"] > 0) == newer and not (newer and r["copied"]), name
    assert len(attention) > 20


def test_decode_copies_each_key_and_value_once_by_16_bytes(reports):
    """Blocks of 8 KB, one of keys and one of values: two of each ahead of the loop and one within."""
    copied = {name: r["copied"] for name, r in reports.items() if name.startswith("attention_decode") and "sm_" in name}
    assert copied and not {name: count for name, count in copied.items() if count != 3 * 2 * 8192}


def test_decode_is_not_compiled_anew_for_other_lengths(reports):
    decode = {name: r["anew"] for name, r in reports.items() if re.match("attention_(decode|combine)", name)}
    assert decode and not any(decode.values())


def test_a_step_of_one_row_loads_its_weights_16_bytes_at_a_time(reports):
    """Two products, each a loop of two blocks at once and one for the rest: a load a gate and one of x or h."""
    for cell, dtype, target in (("lstm", "bf16", "sm_80"), ("lstm", "fp32", "sm_90"), ("gru", "bf16", "sm_90")):
        assert reports[f"step-{cell}-{dtype}-B1-{target}"]["wide"] == 6 * (CELLS[cell].gates + 1)


def test_gates_made_anew_load_pre_activations_alone_16_bytes_at_a_time(reports):
    """An LSTM's gates do not depend on the states but through the products: these are not loaded."""
    for target in ("sm_80", "sm_90"):
        assert reports[f"scan_gates-lstm-bf16-{target}"]["wide"] == 2 * CELLS["lstm"].gates


def test_a_release_comes_after_all_threads_stores(reports):
    assert not [name for name, r in reports.items() if r["unordered"]]


def test_no_load_is_made_ahead_of_a_wait(reports):
    """Where weights stay on the chip, only h is loaded after the first wait; streamed weights come by copies."""
    assert not [name for name, r in reports.items() if "-grid-" in name and r["copies"]]
    streamed = {name: r for name, r in reports.items() if "-streamed-" in name}
    assert streamed and all(r["copies"] and not r["ahead"] for r in streamed.values())


def test_an_unordered_release_is_seen():
    from compiled_code import unordered

    assert unordered("st.global.b32 [%rd1], %r1;\nbar.sync 0;\natom.add.release.gpu.u32 %r2, [%rd2], 1;") == 0
    assert unordered("st.global.b32 [%rd1], %r1;\natom.add.release.gpu.u32 %r2, [%rd2], 1;") == 1
