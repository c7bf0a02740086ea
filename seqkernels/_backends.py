"""Which backend's kernels take a tensor: Numba's on the CPU, Triton's on a GPU.

With SEQKERNELS_IMPL=triton in the environment, CPU tensors go to the Triton kernels too, which Triton's interpreter
then runs: slow, for tests, and only if Triton has not been imported without TRITON_INTERPRET=1.
"""

import importlib.util
import os
from functools import cache

import torch
from torch.compiler import is_compiling

CHOICES = ("auto", "triton")
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "gpu": (torch.float32, torch.float16, torch.bfloat16),
}
OLDEST = 8, 0  # compute capability of NVIDIA GPUs
HAS_TRITON = importlib.util.find_spec("triton") is not None
# What the kernels of a backend take beyond a plain scan.
OPTIONS = {
    "cpu": ("lengths", "reset", "batch_sizes", "return_states"),
    "gpu": ("lengths", "reset", "return_states"),
}

chosen = os.environ.get("SEQKERNELS_IMPL") or "auto"
if chosen not in CHOICES:
    raise ValueError(f"SEQKERNELS_IMPL must be one of {', '.join(CHOICES)}, got {chosen!r}")
if chosen == "triton" and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@cache
def too_old(device):
    """Whether an NVIDIA GPU lacks what the kernels are compiled for: bfloat16, and copies past the registers."""
    return torch.cuda.is_available() and not torch.version.hip and torch.cuda.get_device_capability(device) < OLDEST


def backend(device):
    """ "cpu" or "gpu" for a torch.device."""
    return "gpu" if device.type == "cuda" or chosen == "triton" else "cpu"


def option_reasons(options, x):
    """Why no kernel takes these options of `functional.scan` for the tensor x: a list."""
    kind = backend(x.device)
    return [f"no {kind.upper()} kernel takes {name}= yet" for name in options if name not in OPTIONS[kind]]


def reason(name, x):
    """Why no kernel takes the tensor x, called `name`, for its device and dtype; or None."""
    if x.device.type not in ("cpu", "cuda", "meta"):
        return f"{name} is on {x.device}: the kernels run on CPUs and on CUDA devices"
    kind = backend(x.device)
    if kind == "gpu" and not HAS_TRITON:
        return f"{name} is on {x.device}: its kernels need triton, which is not installed"
    if x.device.type == "cuda" and not is_compiling() and too_old(x.device):
        major, minor = OLDEST
        return f"{name} is on {x.device}: the kernels need compute capability {major}.{minor} or later"
    return dtype_reason(name, x.dtype, x.device)


def dtype_reason(name, dtype, device):
    """Why the kernels for a device do not take what is called `name` for its dtype, or None."""
    kind = backend(device)
    if kind == "gpu" and device.type == "cpu" and dtype == torch.bfloat16:
        return f"{name} is {dtype}, which Triton's interpreter gets wrong"
    if dtype not in DTYPES[kind]:
        taken = [str(dtype).removeprefix("torch.") for dtype in DTYPES[kind]]
        return f"{name} is {dtype}: the kernels take {', '.join(taken[:-1])} and {taken[-1]}"
    return None
