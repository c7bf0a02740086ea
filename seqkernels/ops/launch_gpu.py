"""What the drivers on a GPU share: attention's arguments, the precision of products, what is asked of the device."""

from functools import cache, wraps

import torch

from ..kernels.gpu.regimes import Device
from ..precision import float32_precision, products
from .rows import dense_rows


def operands(q, k, v, mask):
    """q, k and v, each with its strides but the last; the mask with all of its own."""
    arguments = ()
    for x in map(dense_rows, (q, k, v)):
        arguments = (*arguments, x, *x.stride()[:3])
    if mask is None:
        return (*arguments, None, 0, 0, 0, 0)
    mask = mask.expand(*q.shape[:3], k.shape[2])
    return (*arguments, mask.view(torch.uint8) if mask.dtype == torch.bool else mask, *mask.stride())


def attention_precision():
    """Of a product of float32 in attention."""
    return float32_precision(torch.backends.cuda.matmul.fp32_precision)


def recurrent_precision():
    """Of a product of float32 in a recurrent layer."""
    return float32_precision(torch.backends.cudnn.rnn.fp32_precision)


def in_recurrent_precision(function):
    """The function, with torch's own float32 products in that precision as well."""

    @wraps(function)
    def run(*arguments, **options):
        with products(recurrent_precision()):
            return function(*arguments, **options)

    return run


@cache
def capability(device):
    """(major, minor), or None where Triton's interpreter runs the kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


@cache
def described(device):
    """What plans depend on. In the interpreter, which runs one program after another, a device with one processor."""
    if device.type != "cuda":
        return Device(processors=1, shared=232_448, cooperative=False)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        processors=properties.multi_processor_count,
        shared=properties.shared_memory_per_block_optin,
        cooperative=torch.version.hip is None,
    )


def processors(device):
    """How many programs run at once, at least."""
    return described(device).processors
