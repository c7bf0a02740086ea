"""Rows that end early, or start again in the middle: what a scan asks of its rows at each step, and does then."""

import triton
import triton.language as tl

from .blocks import load_states


@triton.jit
def marked(reset, reset_row, rows, B):
    """Which rows start again before a step: a block like `rows`, from that step's row of marks (B,) uint8."""
    return tl.load(reset + rows * reset_row, mask=rows < B, other=0) != 0


@triton.jit
def choose(condition, a, b, COUNT: tl.constexpr):
    """Of COUNT pairs of blocks, a where the condition holds, else b."""
    results = ()
    for i in tl.static_range(COUNT):
        results = results + (tl.where(condition, a[i], b[i]),)
    return results


@triton.jit
def only(condition, blocks, COUNT: tl.constexpr):
    """COUNT blocks, zero where the condition does not hold, whatever was there."""
    results = ()
    for i in tl.static_range(COUNT):
        results = results + (tl.where(condition, blocks[i], 0.0),)
    return results


@triton.jit
def plus_each(blocks, pointer, stride, mask, COUNT: tl.constexpr):
    """COUNT blocks, to each of which those in memory, `stride` elements apart, are added under the mask."""
    results = ()
    for i in tl.static_range(COUNT):
        results = results + (blocks[i] + tl.load(pointer + i * stride, mask=mask, other=0.0),)
    return results


@triton.jit
def restarted(s, fresh, h, c, offsets, inside, STATES: tl.constexpr):
    """The states s, but in the rows `fresh` those at h and c, or zero where h is None."""
    if h is None:
        s = only(fresh == 0, s, STATES)
    else:
        s = choose(fresh, load_states(h, c, offsets, inside & fresh, STATES), s, STATES)
    return s
