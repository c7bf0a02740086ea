"""Attention's blocks read through tensor descriptors, and the rule for when they are."""

import pytest
import torch
from attention_cases import assert_right, inputs
from device import there
from seqkernels.kernels.gpu.descriptors import describable
from triton.tools.tensor_descriptor import TensorDescriptor
from triton_attention_cases import TALL, WIDE, by_triton

from seqkernels.ops.launch_gpu import capability, operand


def interleaved(*tensors):
    """The same, in memory (B, rows, heads, size)."""
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize(
    "T, S, D, E, causal, masked, p, config",
    (
        (40, 150, 16, 8, True, False, 0.0, WIDE),
        (150, 40, 8, 16, True, False, 0.0, TALL),
        (33, 50, 40, 24, False, True, 0.0, TALL),
        (17, 70, 8, 8, True, True, 0.3, WIDE),
        (1, 33, 80, 136, False, False, 0.0, WIDE),
    ),
)
def test_descriptors_give_what_pointers_give(T, S, D, E, causal, masked, p, config, dtype):
    q, k, v = interleaved(*inputs(2, 4, T, S, D, E, 2, dtype))
    (dout,) = interleaved(torch.randn(2, 4, T, E, dtype=dtype))
    mask, seed = torch.rand(T, S) < 0.8 if masked else None, torch.tensor([7])
    given = q, k, v, dout, mask, causal, None, p, seed, config
    described = by_triton(*given, descriptors=True)
    for a, b in zip(described, by_triton(*given, descriptors=False), strict=True):
        assert torch.equal(a, b)
    if not p:
        assert_right(described, q, k, v, mask, causal, None, dout)


def test_an_operand_is_a_descriptor_of_its_block_or_a_pointer_with_strides():
    (x,) = there(torch.randn(2, 40, 3, 24).transpose(1, 2))
    found, *strides = operand(x, (16, 32), True)
    assert isinstance(found, TensorDescriptor) and strides == [None] * 3 and found.base is x
    assert (list(found.shape), list(found.block_shape)) == ([2, 3, 40, 24], [1, 1, 16, 32])
    for given in ((x,), (x, (16, 32), False), (x, None, True)):
        assert operand(*given) == (x, *x.stride()[:3])


@pytest.mark.parametrize(
    "change, wanted",
    (
        ({}, True),
        ({"capability": (12, 0)}, True),
        ({"capability": (8, 9)}, False),
        ({"capability": None}, False),
        ({"address": 1 << 40 | 8}, False),
        ({"strides": (2880, 24, 72, 1)}, True),  # of each row all heads, then the next row
        ({"strides": (2880, 960, 20, 1)}, False),  # 40 bytes
        ({"itemsize": 4}, False),
        ({"strides": (2880, 960, 24, 2)}, False),
        ({"strides": (2880, 0, 24, 1)}, False),  # expanded
        ({"strides": (1 << 39, 960, 24, 1)}, False),
        ({"shape": (0, 3, 40, 24)}, False),
        ({"shape": (2, 3, 1 << 31, 24)}, False),
    ),
)
def test_what_can_be_described(change, wanted):
    given = {"shape": (2, 3, 40, 24), "strides": (2880, 960, 24, 1), "itemsize": 2, "address": 1 << 40}
    assert describable(**{**given, "capability": (9, 0), **change}) is wanted


def test_only_nvidia_has_a_capability(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert capability.__wrapped__(torch.device("cuda")) is None
