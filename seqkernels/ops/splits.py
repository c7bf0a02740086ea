"""How work is split over threads: never so that a bit of the result depends on the number of threads."""

import torch

from .compiled import compiled

_WORTH_A_THREAD = 4e6  # operations: 40 us of one core, against 4 us to hand work over


def worth_threads(operations):
    """Whether a piece of work is worth more than one thread."""
    return operations >= _WORTH_A_THREAD


def parts_for(operations):
    """How many parts a piece of work is worth."""
    return torch.get_num_threads() if worth_threads(operations) else 1


def row_ranges(B, vectors, parts, lengths=None):
    """Up to `parts` ranges of B rows, on the cuts of tiles `vectors` wide; kernels take few rows whole.

    lengths: (B,), how many steps each row has, to be shared out evenly; None where all have the same.
    """
    tile = compiled().rows(vectors)
    parts = min(parts, B // tile) if compiled().few_rows <= B else 1
    if parts <= 1:
        return [(0, B)]
    if lengths is None:
        edges = [round(B * i / (parts * tile)) * tile for i in range(parts)] + [B]
    else:
        done = lengths.cumsum(0)
        shares = torch.arange(1, parts) * done[-1] // parts
        edges = sorted({0, *((torch.searchsorted(done, shares) + 1) // tile * tile).tolist(), B})
    return list(zip(edges, edges[1:]))


def ranges(count, parts):
    """Up to `parts` ranges of `count` things."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
