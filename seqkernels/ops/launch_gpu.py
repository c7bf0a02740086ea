"""What the drivers on a GPU share: attention's arguments, the precision of products, what is asked of the device."""

from functools import cache, wraps

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from ..kernels.gpu.descriptors import describable
from ..kernels.gpu.regimes import Device, wide_products
from ..precision import float32_precision, products
from .rows import dense_rows


def operand(x, block=None, descriptors=None):
    """x (B, heads, rows, size) with its strides but the last; or a tensor descriptor of it, with None for them.

    block: (rows, columns) of the blocks that a loop reads of it, or None for no descriptor. descriptors: whether to use
    one; None is by the rule, `kernels.gpu.descriptors`. One is made at each call, on the host, and goes by value, so
    that a CUDA graph keeps it; what that costs has not been measured.
    """
    x = dense_rows(x)
    if block is not None and descriptors is None:
        descriptors = describable(x.shape, x.stride(), x.element_size(), x.data_ptr(), capability(x.device))
    if block is not None and descriptors:
        return TensorDescriptor.from_tensor(x, [1, 1, *block]), None, None, None
    return (x, *x.stride()[:3])


def operands(q, k, v, mask, blocks=(None, None, None), descriptors=None):
    """q, k and v as `operand` has them, of these blocks; the mask with all of its strides, booleans as bytes."""
    arguments = ()
    for x, block in zip((q, k, v), blocks, strict=True):
        arguments = (*arguments, *operand(x, block, descriptors))
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
    """(major, minor) of an NVIDIA GPU, else None: where Triton's interpreter runs the kernels, too."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if nvidia else None


@cache
def described(device):
    """What plans depend on. In the interpreter, which runs one program after another, a device with one processor."""
    if device.type != "cuda":
        return Device(processors=1, shared=232_448, cooperative=False, wide=False)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        processors=properties.multi_processor_count,
        shared=properties.shared_memory_per_block_optin,
        cooperative=torch.version.hip is None,
        wide=wide_products(capability(device)),
    )


def processors(device):
    """How many programs run at once, at least."""
    return described(device).processors
