"""The disk cache of compiled kernels: found again, never stale, never another cell's, never in a place that fails."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

RUN = """
import sys, torch
from seqkernels.ops import scan_cpu
from seqkernels.kernels.cpu import compile
for cell in sys.argv[1:]:
    torch.manual_seed(0)
    x, h = torch.randn(3, 2, 5), torch.zeros(1, 2, 6)
    gates = {"rnn_tanh": 1, "lstm": 4, "gru": 3}[cell]
    weights = [torch.randn(6 * gates, 5) / 4, torch.randn(6 * gates, 6) / 4]
    y = scan_cpu.forward(cell, x, h, h if cell == "lstm" else None, weights, False, False)[0]
    print(cell, y.double().sum().item())
print("compiled", compile.compilations(), compile.directory())
"""


def run(environment, *cells, **more):
    return ended(start(environment, *cells, **more))


def start(environment, *cells, **more):
    command = [sys.executable, "-c", RUN, *cells]
    # From a folder that holds no package: it would come before PYTHONPATH.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**environment, **more}, cwd=sys.prefix, **pipes)


def ended(process):
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    *results, compiled = output.strip().splitlines()
    _, count, directory = compiled.split()
    return results, int(count), Path(directory)


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "SEQKERNELS_CACHE_DIR": str(tmp_path / "cache")}


def test_a_second_process_compiles_nothing_and_every_cell_gets_its_own_code(environment):
    cells = ("rnn_tanh", "lstm")
    results, count, _ = run(environment, *cells)
    again, count_again, _ = run(environment, *cells)
    assert count == 4 and count_again == 0  # per cell a forward and a packing
    assert again == results and len({r.split()[1] for r in results}) == 2


def test_processes_that_start_together_compile_once(environment):
    found = [ended(process) for process in [start(environment, "rnn_tanh") for _ in range(3)]]
    assert sum(count for _, count, _ in found) == 2
    assert all(results == found[0][0] for results, _, _ in found)


def test_kernels_compiled_apart_do_not_mix_in_a_third_process(environment):
    """Numba counts its symbols anew in every process: two kernels' parts must not meet under one name."""
    cells = ("rnn_tanh", "gru")
    apart = [run(environment, cell) for cell in cells]
    for order in (1, -1):
        together, count, _ = run(environment, *cells[::order])
        assert count == 0
        assert together == [line for results, _, _ in apart[::order] for line in results]


def test_an_edit_of_a_source_is_compiled_anew(environment, tmp_path):
    """A copy of the package whose cells are edited shares the cache directory and must not share the code."""
    from seqkernels import kernels

    package = tmp_path / "copy" / "seqkernels"
    shutil.copytree(Path(kernels.__file__).parent.parent / "seqkernels", package)
    shutil.copytree(Path(kernels.__file__).parent, package / "kernels")
    here = {**environment, "PYTHONPATH": str(tmp_path / "copy")}
    results, count, directory = run(here, "rnn_tanh")
    cells = package / "kernels" / "cells.py"
    cells.write_text(cells.read_text().replace("activation(x[0] + u[0])", "activation(x[0] - u[0])"))
    edited, count_edited, directory_edited = run(here, "rnn_tanh")
    assert directory_edited != directory and count_edited == count
    assert edited != results


def test_what_is_compiled_while_the_sources_change_is_not_found_again(environment, monkeypatch, tmp_path):
    from seqkernels.kernels.cpu import compile

    monkeypatch.setattr(compile, "directory", lambda: tmp_path)
    monkeypatch.setattr(compile, "_entries", {})
    compile.kernel("pack", cell="gru", size=8, operand="x")
    assert list(tmp_path.glob("pack*.py"))
    monkeypatch.setattr(compile, "_sources_at_start", "of another time")
    compile.kernel("pack", cell="gru", size=8, operand="h")
    assert [path.stem for path in tmp_path.glob("pack*.py")] == ["pack__cell_gru__operand_x__size_8"]


def test_numbas_own_settings_are_left_alone(environment, tmp_path):
    own = tmp_path / "numba"
    run(environment, "rnn_tanh", NUMBA_CACHE_DIR=str(own))
    assert run(environment, "rnn_tanh", NUMBA_CACHE_DIR=str(own))[1] == 0


def test_an_unwritable_home_falls_back_to_the_temporary_directory(environment, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "tmp").mkdir()
    environment = {k: v for k, v in environment.items() if k not in ("SEQKERNELS_CACHE_DIR", "XDG_CACHE_HOME")}
    _, _, directory = run(environment, HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path / "tmp"))
    assert (tmp_path / "tmp") in directory.parents


def test_no_writable_directory_is_a_clear_error(environment, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    blocked = {**environment, "SEQKERNELS_CACHE_DIR": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, "rnn_tanh"], env=blocked, capture_output=True, text=True, check=False
    )
    assert "set SEQKERNELS_CACHE_DIR" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_waits_for_the_kernel_that_a_thread_compiles():
    """A child has no thread that would give back the compiler's locks."""
    from numba.core.compiler_lock import global_compiler_lock
    from seqkernels.kernels.cpu import compile

    compiling, done = threading.Event(), threading.Event()

    def slow():
        with compile._lock, global_compiler_lock:
            compiling.set()
            time.sleep(0.3)
            done.set()

    thread = threading.Thread(target=slow)
    thread.start()
    compiling.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        with compile._lock, global_compiler_lock:
            os._exit(0 if done.is_set() else 1)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
