"""Tests of narrow elements run again for CPUs without dot products for them, each in a process that compiles for such
a one."""

import subprocess
import sys

import pytest
from seqkernels.kernels.cpu import target
from test_target import AVX2

AVX512 = {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": AVX2["NUMBA_CPU_FEATURES"] + ",+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd",
}
_RUN = """
import sys, pytest
from seqkernels.kernels.cpu import target
assert not target.current().dots_bfloat16 and not target.current().dots_bytes
sys.exit(pytest.main(sys.argv[1:]))
"""


def features_and_tests(some, others, without):
    """Marks a test of (features, chosen): which of a file's tests to run on AVX2, in the default suite, None for none,
    and, slow, the others; and, slow, on AVX-512 without the instruction."""
    cases = [pytest.param(AVX2, some, id="avx2")] * (some is not None)
    cases.append(pytest.param(AVX2, others, id="avx2 the rest", marks=pytest.mark.slow))
    cases.append(pytest.param(AVX512, without, id="avx512 without the instruction", marks=pytest.mark.slow))
    x86 = target.current().triple.split("-")[0] == "x86_64"

    def mark(test):
        test = pytest.mark.parametrize("features, chosen", cases)(test)
        return pytest.mark.skipif(not x86, reason="these are x86-64 instruction sets")(test)

    return mark


def run(file, features, chosen, environment):
    """Those of a file's tests that pytest's -k chooses, which must pass."""
    if features is AVX512 and target.current().name != "AVX-512":
        pytest.skip("this CPU has no AVX-512")
    command = [sys.executable, "-c", _RUN, "-q", "-p", "no:cacheprovider", "-k", chosen, file]
    done = subprocess.run(command, env={**environment, **features}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
