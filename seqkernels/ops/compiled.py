"""The CPU kernels as the drivers use them. Numba is imported with the first call, not with the library."""

from functools import cache
from types import SimpleNamespace


@cache
def compiled():
    """kernel(name, **parameters), layout(cell, size, save), steps(B), rows(vectors) and few_rows of
    `seqkernels.kernels.cpu`."""
    from seqkernels.kernels.cpu import target
    from seqkernels.kernels.cpu.compile import kernel
    from seqkernels.kernels.cpu.layout import FEW_ROWS, layout, steps

    rows = target.current().rows
    return SimpleNamespace(kernel=kernel, layout=layout, steps=steps, rows=rows, few_rows=FEW_ROWS)
