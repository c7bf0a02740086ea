"""Dropout of attention's weights in plain torch operators, the oracle of `seqkernels.kernels.dropout`."""

import math

import torch

from seqkernels.kernels.dropout import MULTIPLIERS, ROUNDS, WEYL, rescale, threshold

_WORD = 0xFFFFFFFF


def draw_seed(device):
    """A seed (1,), int64, from torch's generator of the device."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), device=device)


def multiplier(p, seed, shape, dtype):
    """What dropout multiplies weights of this shape (..., T, S) with: 0, or what keeps their expectation."""
    *heads, T, S = shape
    eighths, queries, heads = (torch.arange(n, device=seed.device) for n in (-(-S // 8), T, math.prod(heads)))
    counter = eighths, queries[:, None], heads[:, None, None], torch.zeros_like(eighths)
    words = torch.stack(philox(counter, seed & _WORD, seed >> 32 & _WORD), -1)  # (heads, T, S / 8, 4)
    numbers = torch.stack((words & 0xFFFF, words >> 16), -1).flatten(2)[..., :S]
    return (numbers >= threshold(p)).view(shape).to(dtype) * rescale(p)


def philox(counter, low, high, rounds=ROUNDS):
    """The four words of Philox4x32 of a counter of four words under a key of two, all of them int64 tensors."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    for _ in range(rounds):
        a, b = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # 64 bits, which wrap as they should
        c0, c1, c2, c3 = b >> 32 & _WORD ^ c1 ^ low, b & _WORD, a >> 32 & _WORD ^ c3 ^ high, a & _WORD
        low, high = low + WEYL[0] & _WORD, high + WEYL[1] & _WORD
    return c0, c1, c2, c3
