"""Kernels: mathematics and loops that write into memory they are given. No torch, no allocation, no dispatch.

Letters, used everywhere: `T` time, `B` batch, `I` input size, `H` hidden size, `G` gates, `S` states, `L` layers,
`D` directions (recurrence) or head size (attention), `N` heads.
"""

if __name__ != "seqkernels.kernels":
    raise ImportError(f"this folder is the package seqkernels.kernels; it was imported as {__name__!r}")
