"""What attention's drivers on the CPU share: rows of tensors, the scale, scratch memory."""

import threading

import torch

_local = threading.local()


def dense_rows(x):
    """x itself if its last stride is 1, else a copy of which it is."""
    if x.is_neg():
        x = x.resolve_neg()
    return x if x.stride()[3] == 1 or x.shape[3] == 1 else x.contiguous()


def place(x):
    """Address, and strides but the last, in elements."""
    return (x.data_ptr(), *x.stride()[:3])


def scale_of(scale, D):
    """The scale; without dimensions every score is 0 whatever it is."""
    return scale if scale is not None else D**-0.5 if D else 1.0


def scratch(elements, dtype):
    """This thread's scratch memory, kept for its next call: a numpy array of dtype, and its address."""
    kept = _local.__dict__.get(dtype)
    if kept is None or kept[0].size < elements:
        memory = torch.empty(elements, dtype=dtype, device="cpu")
        kept = _local.__dict__[dtype] = memory.numpy(), memory.data_ptr()
    return kept
