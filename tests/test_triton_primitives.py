"""The functions that the cells are bound to on Triton blocks, against float64."""

import pytest
import torch
import triton
import triton.language as tl
from device import DEVICE
from seqkernels.kernels.gpu import primitives

COUNT = 4096


@triton.jit
def apply(x, y, FUNCTION: tl.constexpr, COUNT: tl.constexpr):
    places = tl.arange(0, COUNT)
    tl.store(y + places, FUNCTION(tl.load(x + places)))


def values(name, x):
    y = torch.empty_like(x)
    apply[(1,)](x, y, FUNCTION=getattr(primitives, name), COUNT=COUNT)
    return y


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
@pytest.mark.parametrize("largest", [1e-3, 0.7, 8.0, 200.0])
def test_error_is_a_few_units_in_the_last_place(name, largest):
    x = torch.linspace(-largest, largest, COUNT, device=DEVICE)
    exact = getattr(torch, name)(x.double())
    limits = torch.finfo(torch.float32)
    allowed = 4 * limits.eps * exact.abs() + limits.tiny  # what is below the normal numbers may be zero
    assert ((values(name, x) - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu"])
def test_nan_and_infinity_are_as_in_torch(name):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0], device=DEVICE).repeat(COUNT // 4)
    torch.testing.assert_close(values(name, x), getattr(torch, name)(x), equal_nan=True)
