"""The one place where the benchmarks meet the library that they measure."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Library:
    """Modules and attention from one source. `stream` is None where the source has no streaming object."""

    name: str
    nn: Any
    attention: Any
    stream: Any = None


def ours():
    """seqkernels' own modules, attention and stream."""
    import seqkernels
    from seqkernels import functional, nn

    return Library("seqkernels", nn, functional.scaled_dot_product_attention, seqkernels.Stream)


def native():
    """torch's own modules and attention."""
    return Library("torch", torch.nn, torch.nn.functional.scaled_dot_product_attention)


def compilations():
    """Kernels compiled by this process so far."""
    from seqkernels.kernels.cpu import compile as kernel_compile

    return kernel_compile.compilations()


def specialisations():
    """Number of kernels, each for one set of parameters, that this process has in use."""
    from seqkernels.kernels.cpu import compile as kernel_compile

    return len(kernel_compile.specialisations())
