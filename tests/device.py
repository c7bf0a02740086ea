"""Where the Triton kernels run in the tests: compiled on a GPU where there is one, else in Triton's interpreter.

Inputs and references are made on the CPU; `there` takes tensors to the kernels and `back` brings results.
"""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"


def there(*values):
    """Tensors, also in lists and tuples, on the kernels' device, with the strides that they have; all else as it is."""
    return _each(_strided, values)


def back(*values):
    """The same on the CPU."""
    return _each(torch.Tensor.cpu, values)


def _each(move, value):
    if isinstance(value, (tuple, list)):
        return type(value)(_each(move, part) for part in value)
    return move(value) if isinstance(value, torch.Tensor) else value


def _strided(tensor):
    if INTERPRETED:
        return tensor
    whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return whole.to(DEVICE).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
