"""Which tensors are read through tensor descriptors, block by block, by the GPU's tensor memory accelerator.

It computes the addresses and the bounds of a block that else the threads compute, in registers of theirs, and gives
zeros outside. What it asks of a tensor is in the CUDA driver's documentation of cuTensorMapEncodeTiled. Elements of 4
bytes are not read so: products in full precision then spill registers (D = 128: 1 to 5 KB, compiled for sm_90), which
they do not with pointers.
"""

_ALIGNMENT = 16  # bytes, of the address and of each stride
_LONGEST, _FARTHEST = 1 << 31, 1 << 40  # of a size, and of a stride in bytes


def describable(shape, strides, itemsize, address, capability):
    """Whether a tensor at `address` is read so. strides: in elements; capability: (major, minor), or None for none."""
    if capability is None or capability < (9, 0) or itemsize != 2 or strides[-1] != 1 or address % _ALIGNMENT:
        return False
    bytes_apart = [stride * itemsize for stride in strides[:-1]]
    return all(0 < n < _LONGEST for n in shape) and all(0 < n < _FARTHEST and n % _ALIGNMENT == 0 for n in bytes_apart)
