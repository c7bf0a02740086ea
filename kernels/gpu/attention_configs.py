"""Sizes of attention's blocks: not tuned, and not yet run, on a GPU.

They were chosen so that the kernels, compiled for sm_80 and sm_90 in bfloat16 and float32, do not spill registers
without a mask (24 bytes at most) and little with one, and need at most 115 KB of shared memory. On sm_90 in bfloat16,
where they read through tensor descriptors, neither a mask nor dropout makes them spill, and they need at most 165 KB.
"""

from dataclasses import dataclass

from .regimes import wide_products


@dataclass(frozen=True)
class Config:
    queries: int
    keys: int
    warps: int
    stages: int


# Operation and whether the elements have 2 bytes -> up to which D -> the block. An option has entries where it differs.
# Those of 4 bytes are small because a product of float32 in full precision keeps its operands in registers.
_TABLE = {
    ("forward", True): {64: Config(128, 64, 4, 3), 128: Config(128, 32, 8, 2), 256: Config(64, 32, 8, 2)},
    ("masked forward", True): {64: Config(64, 64, 8, 2), 128: Config(64, 32, 8, 2), 256: Config(32, 32, 8, 1)},
    ("forward", False): {64: Config(64, 32, 8, 2), 128: Config(32, 32, 8, 1), 256: Config(32, 16, 8, 1)},
    ("masked forward", False): {64: Config(64, 32, 8, 2), 128: Config(32, 32, 8, 1), 256: Config(32, 16, 8, 1)},
    ("keys", True): {64: Config(32, 64, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    ("keys", False): {64: Config(32, 32, 8, 2), 128: Config(16, 32, 8, 1), 256: Config(16, 16, 8, 1)},
    ("queries", True): {64: Config(64, 32, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    ("queries", False): {64: Config(64, 32, 8, 2), 128: Config(32, 32, 8, 1), 256: Config(16, 16, 8, 1)},
}
# With `wide_products`, here of two groups of four warps.
_WIDE = {
    ("forward", True): {64: Config(128, 64, 4, 3), 128: Config(128, 64, 8, 2), 256: Config(64, 32, 8, 2)},
    ("dropped forward", True): {64: Config(128, 64, 8, 2)},
    ("keys", True): {64: Config(64, 128, 8, 2), 128: Config(64, 128, 8, 2), 256: Config(32, 32, 8, 1)},
    ("masked keys", True): {64: Config(64, 128, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    ("dropped keys", True): {64: Config(32, 128, 8, 2), 128: Config(32, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    ("queries", True): {64: Config(128, 64, 8, 2), 128: Config(128, 64, 8, 2), 256: Config(32, 32, 8, 1)},
    ("masked queries", True): {64: Config(128, 64, 8, 2), 128: Config(64, 64, 8, 2), 256: Config(32, 32, 8, 1)},
}


def config_for(operation, D, itemsize, capability=None, option=None):
    """The blocks of "forward", "keys" (dk, dv) or "queries" (dq), for elements of `itemsize` bytes.

    D: the larger of the sizes of a query and a value. capability: (major, minor), or None where there is no NVIDIA GPU.
    option: "dropped" with dropout, else "masked" with a mask, else None.
    """
    tables = (_WIDE, _TABLE) if wide_products(capability) else (_TABLE,)
    names = f"{option} {operation}", operation
    entries = (table.get((name, itemsize == 2), {}) for name in names for table in tables)
    return next(config for entry in entries for size, config in entry.items() if size >= D)


def padded(size):
    """A power of two that a product's dimension can have."""
    return max(16, 1 << max(0, size - 1).bit_length())
