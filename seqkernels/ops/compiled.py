"""The CPU kernels as the drivers use them. Numba is imported with the first call, not with the library."""

from functools import cache
from types import SimpleNamespace

import torch


def widths(dtype):
    """Bytes of a lane of the kernels and of an element in memory: those of bfloat16 compute in float32."""
    return max(dtype.itemsize, 4), dtype.itemsize


def computed(dtype):
    """What the kernels compute in."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


@cache
def compiled():
    """kernel(name, **parameters) and its address, layout(cell, size, save, stored), row_scratch(layout), steps(B),
    terms(K, size, stored), rows(vectors), few_rows, region_header, and the module crew of `seqkernels.kernels.cpu`."""
    from seqkernels.kernels.cpu import crew, target
    from seqkernels.kernels.cpu.compile import address, kernel
    from seqkernels.kernels.cpu.layout import FEW_ROWS, layout, row_scratch, steps, terms
    from seqkernels.kernels.cpu.region import HEADER

    rows = target.current().rows
    sizes = {"layout": layout, "row_scratch": row_scratch, "steps": steps, "terms": terms}
    sizes |= {"rows": rows, "few_rows": FEW_ROWS}
    return SimpleNamespace(kernel=kernel, address=address, region_header=HEADER, crew=crew, **sizes)
