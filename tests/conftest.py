"""What every test runs under: fixed seeds, one torch thread, and fresh memory that holds NaN instead of luck.

The tests of the Triton kernels, test_triton_*.py, have the mark "gpu": on a machine with one they run compiled on it,
elsewhere in Triton's interpreter. `pytest -m gpu` collects these files alone, and needs torch, triton, numba, numpy and
pytest.
"""

import importlib.util
import os
import random
import shutil
import tempfile
from collections import Counter

import numpy as np
import pytest
import torch

# What not every machine has. A test that uses one of these says so in its name or id.
OPTIONAL = ("avx512", "avx2", "neon", "inductor", "onnxruntime", "triton", "cuda")

# Where files are shared out over processes, these begin.
LONGEST = ("test_triton_compile.py", "test_cooperative.py")

if torch.cuda.is_available():
    # float32 is float32: the tolerances know nothing of TF32. cuBLAS is deterministic only with a fixed workspace.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    # Triton's kernels run in its interpreter, on CPU tensors. It is asked for before Triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        from quick_interpreter import quicken

        quicken()

# Graphs that Inductor kept on disk may hold an operator of ours as it was in another version.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("default", derandomize=True, deadline=None, database=None)
    settings.register_profile("search", deadline=None)  # new examples at every run: --hypothesis-profile=search
    settings.load_profile("default")


def _on_a_gpu(path):
    return path.match("test_triton_*.py") and path.name != "test_triton_compile.py"


def pytest_ignore_collect(collection_path, config):
    """With -m gpu the other files are not even imported: what they need may not be there."""
    if config.option.markexpr == "gpu" and collection_path.match("test_*.py") and not _on_a_gpu(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if _on_a_gpu(item.path):
            item.add_marker("gpu")
    items.sort(key=lambda item: item.path.name not in LONGEST)


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
