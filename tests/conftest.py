"""What every test runs under: fixed seeds, one torch thread, and fresh memory that holds NaN instead of luck."""

import importlib.util
import os
import random
import shutil
import tempfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import settings

# What not every machine has. A test that uses one of these says so in its name or id.
OPTIONAL = ("avx512", "avx2", "neon", "inductor", "onnxruntime", "triton", "cuda")

# Without a GPU, Triton's kernels run in its interpreter, on CPU tensors. It is asked for before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Graphs that Inductor kept on disk may hold an operator of ours as it was in another version.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")

settings.register_profile("default", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None)  # new examples at every run: --hypothesis-profile=search
settings.load_profile("default")


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    """torch.empty and its kin give NaN (integers: the largest value; booleans: True), except where time is measured."""
    torch.use_deterministic_algorithms("benchmark" not in request.fixturenames, warn_only=True)


@pytest.fixture(autouse=True)
def fixed_seeds():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def one_thread():
    """One torch thread, unless a test asks for more; that is undone after it."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    from seqkernels.kernels.cpu import target

    current = target.current()
    present = {
        "C++ compiler": any(map(shutil.which, ("c++", "g++", "clang++"))),
        "onnxruntime": importlib.util.find_spec("onnxruntime") is not None,
        "triton": importlib.util.find_spec("triton") is not None,
        "CUDA": torch.cuda.is_available(),
    }
    counts = Counter()
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            counts.update((name, outcome) for name in OPTIONAL if name in report.nodeid.lower())
    ran = {n: ", ".join(f"{c} {outcome}" for (name, outcome), c in counts.items() if name == n) for n in OPTIONAL}
    terminalreporter.section("machine and optional parts")
    terminalreporter.line(f"{current.name}, {current.lanes(4)} float32 lanes; torch {torch.__version__}")
    terminalreporter.line("; ".join(f"{name} {'present' if there else 'absent'}" for name, there in present.items()))
    terminalreporter.line("; ".join(f"{name}: {done or 'no test'}" for name, done in ran.items()))


@pytest.fixture(scope="session")
def kernel_environment(tmp_path_factory):
    """The environment of a process that compiles kernels for another target, with a cache directory of its own."""
    return {**os.environ, "SEQKERNELS_CACHE_DIR": str(tmp_path_factory.mktemp("kernels"))}
