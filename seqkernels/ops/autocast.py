"""Autocast for the operators, on a GPU: they belong to torch's list of lower precision, as its own recurrent layers and
attention do. Floating arguments, float64 apart, are cast to the thread's autocast dtype; within, nothing is cast again.
"""

import torch
from torch._C import DispatchKey, DispatchKeySet

from .. import _check

_KEYS = DispatchKeySet(DispatchKey.AutocastCPU).add(DispatchKey.AutocastCUDA)


def register(library, name, casts=True):
    """Gives the operator `name` of the library its rule. A gradient's arguments are what they are to be already."""
    operator = getattr(getattr(torch.ops, library.ns), name)

    def run(*arguments, **options):
        if casts:
            arguments = lowered(next(x.device for x in arguments if isinstance(x, torch.Tensor)), *arguments)
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):  # within, autocast is not active
            return operator(*arguments, **options)

    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl(name, run, key)


def lowered(device, *arguments):
    """The arguments, sequences of tensors among them, cast where autocast is active for the device."""
    dtype = _check.autocast_dtype(device)
    return arguments if dtype is None else tuple(_cast(x, dtype) for x in arguments)


def _cast(x, dtype):
    if isinstance(x, (list, tuple)):
        return [_cast(each, dtype) for each in x]
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(dtype)
