"""The drivers of the kernels, each loaded with its backend when it is first needed."""

import importlib
from functools import cache

from .. import _backends


def driver(operation, device):
    """The module that runs an operation on a torch.device: `ops.<operation>_cpu` or `ops.<operation>_gpu`."""
    return _module(f".{operation}_{_backends.backend(device)}")


@cache
def _module(name):
    return importlib.import_module(name, __package__)
