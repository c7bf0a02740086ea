"""The repair of bfloat16 in Triton's interpreter, against torch."""

import pytest
import torch
import triton
import triton.language as tl
from bfloat16_interpreter import repair

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU kernels are not interpreted")
SIZE = 16


@pytest.fixture(autouse=True)
def repaired():
    repair()


@triton.jit
def converted(x, y, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places).to(y.dtype.element_ty))


@triton.jit
def multiplied(a, b, y, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(y + places, tl.dot(tl.load(a + places), tl.load(b + places)))


@triton.jit
def added(x, y, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places) + tl.load(x + places))


@pytest.mark.parametrize("there, back", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_conversion_is_torchs_bit_for_bit(there, back):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38])
    x = torch.cat([special, torch.randn(SIZE - len(special))]).to(there)
    y = torch.empty(SIZE, dtype=back)
    converted[(1,)](x, y, SIZE)
    torch.testing.assert_close(y, x.to(back), rtol=0, atol=0, equal_nan=True)


def test_product_is_exact_to_float32():
    a, b = (torch.randn(SIZE, SIZE, dtype=torch.bfloat16) for _ in range(2))
    y = torch.empty(SIZE, SIZE)
    multiplied[(1,)](a, b, y, SIZE)
    torch.testing.assert_close(y, (a.double() @ b.double()).float(), rtol=1e-6, atol=1e-6)


def test_arithmetic_is_refused():
    x = torch.ones(SIZE, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="bfloat16: convert to float32"):
        added[(1,)](x, torch.empty_like(x), SIZE)
