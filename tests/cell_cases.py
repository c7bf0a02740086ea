"""The cells and dtypes that the CPU's scans are tested in. Of RNNs in float64, which differ in one function that has
tests of its own, one belongs to the default suite: each is a compilation of half a minute."""

import pytest
import torch
from seqkernels.kernels.cells import CELLS

ALIKE = ("rnn_relu", "rnn_sigmoid")
_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def case(cell, dtype):
    marks = pytest.mark.slow if cell in ALIKE and dtype == torch.float64 else ()
    return pytest.param(cell, dtype, marks=marks, id=f"{_NAMES[dtype]}-{cell}")


def in_float64():
    """The cells, for tests in float64 alone."""
    cases = [pytest.param(cell, marks=pytest.mark.slow if cell in ALIKE else ()) for cell in CELLS]
    return pytest.mark.parametrize("cell", cases)


cells_and_dtypes = pytest.mark.parametrize("cell, dtype", [case(cell, dtype) for dtype in _NAMES for cell in CELLS])
