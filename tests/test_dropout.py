"""Dropout's generator: the published vectors of Philox4x32, the rate, and numbers that belong to their place."""

import math

import pytest
import torch

from seqkernels import dropout, functional

PI = "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0"  # counter and key
# From Random123's kat_vectors: rounds, counter and key, output.
VECTORS = [
    (7, "00000000 " * 6, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff " * 6, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (10, "00000000 " * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff " * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("rounds, given, expected", VECTORS)
def test_philox_gives_the_published_numbers(rounds, given, expected):
    *counter, low, high = (torch.tensor(int(word, 16)) for word in given.split())
    words = dropout.philox(counter, low, high, rounds)
    assert [f"{int(word):08x}" for word in words] == expected.split()


@pytest.mark.parametrize("p", (0.0, 0.1, 0.5, 0.93, 1.0))
def test_the_rate_is_p_and_the_expectation_stays(p):
    kept = dropout.multiplier(p, torch.tensor([5]), (2, 3, 100, 203), torch.float64)
    deviation = math.sqrt(p * (1 - p) / kept.numel())
    assert abs((kept == 0).double().mean() - p) <= 4 * deviation + 1e-5
    if p < 1:
        assert abs(kept.mean() - 1) <= 4 * deviation / (1 - p) + 1e-5


def test_a_number_belongs_to_its_place():
    seed = torch.tensor([-3])
    whole = dropout.multiplier(0.4, seed, (1, 4, 9, 50), torch.float32)
    assert torch.equal(dropout.multiplier(0.4, seed, (1, 3, 7, 21), torch.float32), whole[:, :3, :7, :21])
    assert torch.equal(dropout.multiplier(0.4, seed, (4, 9, 50), torch.float32), whole[0])
    others = [dropout.multiplier(0.4, torch.tensor([s]), whole.shape, torch.float32) for s in (-4, 3, (1 << 40) - 3)]
    others += [whole.roll(1, dim) for dim in (1, 2, 3)]
    for other in others:  # agree by chance only: 0.4^2 + 0.6^2
        assert abs((other == whole).double().mean() - 0.52) < 0.05


def test_torchs_generator_decides():
    q = torch.randn(2, 2, 5, 8)
    torch.manual_seed(1)
    seeds = [dropout.draw_seed("cpu") for _ in range(3)]
    torch.manual_seed(1)
    assert seeds == [dropout.draw_seed("cpu") for _ in range(3)] and len(set(map(int, seeds))) == 3
    runs = []
    for _ in range(2):
        torch.manual_seed(2)
        runs.append(functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5, impl="reference"))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5, impl="reference"))
