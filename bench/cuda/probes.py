"""Small Triton kernels that ask the device one question each."""

import triton
import triton.language as tl
from seqkernels.kernels.gpu.grid_sync import arrive, wait_for


@triton.jit
def nothing():
    """What a launch costs."""


@triton.jit
def read(x, sums, length, BLOCK: tl.constexpr):
    """Reads x (length,) float32 and writes each program's sum, sums (programs,)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, length, programs * BLOCK):
        places = start + tl.arange(0, BLOCK)
        total += tl.load(x + places, mask=places < length, other=0.0)
    tl.store(sums + program, tl.sum(total, axis=0))


@triton.jit
def barriers(counter, steps):
    """`steps` times, all programs wait for each other; counter, zero before, is steps * programs after."""
    programs = tl.num_programs(0)
    for step in range(steps):
        arrive(counter)
        wait_for(counter, (step + 1) * programs)


@triton.jit
def transposed(a, b, c, y, SIZE: tl.constexpr):
    """y (SIZE, SIZE) float32 = (a b)^T c: the transpose of a product as the operand of another, which some versions
    of Triton compile wrongly for Hopper (fla-org/flash-linear-attention#640)."""
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    first = tl.dot(tl.load(a + places), tl.load(b + places))
    tl.store(y + places, tl.dot(tl.trans(first.to(c.dtype.element_ty)), tl.load(c + places)))
