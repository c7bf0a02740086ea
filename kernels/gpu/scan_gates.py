"""What a cell saves at every step of a scan, made anew where only the states were kept: no step waits for another.

A program has a block of units and a block of rows, which are those of all steps one after another. Bytes: 2 G H of
pre-activations and SAVED H of results a row, and of the states before each step those that what is saved depends on.
"""

import triton
import triton.language as tl

from .blocks import load_each, load_states, place, store_each

BLOCK = {"UNITS": 64, "ROWS": 16}  # of a program of 4 warps: a thread has 8 units of a row, 16 bytes of half precision


@triton.jit
def scan_gates(
    x, x_time, x_row, u,  # (T, B, G H): input and recurrent pre-activations; u contiguous
    h, c,  # (T, B, H), contiguous: the states before each step; c None without a second state
    gates,  # (T, SAVED, B, H), contiguous
    T, B, H,
    CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr,
    UNITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    _, _, _, units, rows, inside = place(T * B, H, UNITS, ROWS)
    time, row = rows // B, rows % B
    inputs = load_each(x + time * x_time + row * x_row + units, H, 0, inside, GATES)
    recurrents = load_each(u + rows * (GATES * H) + units, H, 0, inside, GATES)
    _, saved = CELL(inputs, recurrents, load_states(h, c, rows * H + units, inside, STATES))
    store_each(saved, gates + (time * SAVED * B + row) * H + units, B * H, 0, inside, SAVED)
