"""The recurrence forward over time, for any cell, as one kernel in four regimes.

A program has a block of units, all their gates, and a block of rows. For each step: the recurrent product of its
gates, the cell on the result, the states stored. What differs is where the weights and h are:

    "whole"     one program has all units: h never leaves it, and nobody waits for anybody
    "grid"      the units are split over programs that are all resident: each keeps its weights, h goes through memory,
                and a program waits, chunk by chunk of units, for those who make what it needs next
    "streamed"  as "grid", for weights that do not fit on the chip: they are read at every step, after one wait for all
    "stepwise"  one launch a step, which reads the weights: where programs may not wait for each other, or are too many

Units are the rows of a product and the batch its columns, so that h as the cell returns it is the next operand.
Operations: 2 T B G H H. Bytes a step: G H B of input pre-activations, (1 + kept) H B of results; "grid": H B for each
program besides; "streamed" and "stepwise": the weights besides, once for each block of rows.
"""

import triton
import triton.language as tl

from .blocks import (
    add_products,
    either,
    load_each,
    load_operand,
    load_states,
    load_weights,
    place,
    producers,
    resident_weights,
    store_each,
    store_states,
)
from .grid_sync import arrive, wait_for
from .ragged import choose, marked, plus_each, restarted


@triton.jit
def scan_forward(
    x, x_direction, x_time, x_row,  # (D, T, B, G H): input pre-activations, with b_ih in them
    w_hh, b_hh,  # (D, G H, H); (D, G H) or None
    h_0,  # (D, B, H)
    y, y_time, y_row,  # (T, B, D H)
    h, h_direction, h_time, h_row,  # (D, T, B, H): where h is read back: y itself or, with KEEP, a tensor apart
    c, gates,  # with KEEP: (D, T, B, H) and (D, T, SAVED, B, H), contiguous
    h_n, c_n,  # (D, B, H), c_n float32: the states before the launch, then those after it
    lengths,  # (B,) integers, or None: from that step on a row's states stay as they are
    reset, reset_time, reset_row,  # (T, B) uint8, or None: whether a row starts again before the step
    reset_h, reset_c, reset_u,  # (D, B, H), or None: with which states; zero if None. (D, B, G H): reset_h W_hh^T
    counters,  # of those that wait: (D, blocks of rows, CHUNKS) int32, zero
    T, B, H, first, last,  # the launch takes the steps first ... last - 1, in the order of each direction
    CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr, KEEP: tl.constexpr,
    REGIME: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    d, group, row_group, units, rows, inside = place(B, H, UNITS, ROWS)
    state, in_state, terms = d * B * H, rows * H + units, tl.arange(0, CHUNK)
    w_hh, h, counters = w_hh + d * GATES * H * H, h + d * h_direction, counters + row_group * CHUNKS
    x += d * x_direction + rows * x_row + units
    s = load_states(h_n, c_n, state + in_state, inside, STATES)
    bias = _biases(b_hh, d * GATES * H + units, units < H, H, UNITS, ROWS, GATES)
    ends = lengths if lengths is None else tl.load(lengths + rows, mask=rows < B, other=0)
    w = ()
    if REGIME == "whole" or REGIME == "grid":
        w = resident_weights(w_hh, H, 1, units, terms[None, :], H, GATES, CHUNK, CHUNKS)
    for step in tl.range(first, last, num_stages=1):  # a load made ahead of a wait would read what is not there yet
        time = d * (T - 1) + (1 - 2 * d) * step
        inputs = load_each(x + time * x_time, H, 0, inside, GATES)
        source = either(step == 0, h_0 + state, h + (time - 1 + 2 * d) * h_time)
        origins, present, start = source + rows * tl.where(step == 0, H, h_row), rows < B, bias
        if reset is not None:
            fresh = marked(reset + time * reset_time, reset_row, rows, B)
            s = restarted(s, fresh, reset_h, reset_c, state + in_state, inside, STATES)
            present = present & (fresh == 0)
            if REGIME != "whole" and reset_h is not None:  # to choose where a row's h is read would cost registers
                start = plus_each(bias, reset_u + state * GATES + rows * (GATES * H) + units, H, inside & fresh, GATES)
        u = _recurrent(
            start, s[0].to(y.dtype.element_ty), origins, present, w, w_hh, counters, step, units, terms, H,
            GATES, REGIME, UNITS, CHUNK, CHUNKS, PRECISION,
        )  # fmt: skip
        s_next, saved = CELL(inputs, u, s)
        if lengths is not None:
            s_next = choose(time < ends, s_next, s, STATES)
        h_next = s_next[0].to(y.dtype.element_ty)
        tl.store(y + time * y_time + rows * y_row + d * H + units, h_next, mask=inside)
        if KEEP:
            kept = (d * T + time) * B * H
            tl.store(h + time * h_time + rows * h_row + units, h_next, mask=inside)
            if STATES == 2:
                tl.store(c + kept + in_state, s_next[1].to(c.dtype.element_ty), mask=inside)
            store_each(saved, gates + kept * SAVED, B * H, in_state, inside, SAVED)
        if REGIME == "grid" or REGIME == "streamed":
            arrive(counters + (group * UNITS // CHUNK if REGIME == "grid" else 0))
        s = (h_next.to(tl.float32),)
        if STATES == 2:
            s = s + (s_next[1],)
    store_states(s, h_n, c_n, state + in_state, inside, STATES)


@triton.jit
def _recurrent(
    u, h, origins, present, w, w_hh, counters, count, units, terms, H,
    GATES: tl.constexpr, REGIME: tl.constexpr, UNITS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """u + h W_hh^T for each gate, h this program's own or, of all units, its rows at `origins`, zero if not present."""
    if REGIME == "whole":
        u = add_products(u, w, 0, h, GATES, PRECISION)
    elif REGIME == "grid":
        for k in tl.static_range(CHUNKS):
            wait_for(counters + k, count * producers(k, H, UNITS, CHUNK))
            operand = load_operand(origins, (k * CHUNK + terms)[:, None], present, H)
            u = add_products(u, w, k * GATES, operand, GATES, PRECISION)
    else:
        if REGIME == "streamed":
            wait_for(counters, count * tl.cdiv(H, UNITS))
        for k in range(0, H, CHUNK):
            operand = load_operand(origins, (k + terms)[:, None], present, H)
            streamed = load_weights(w_hh, H, 1, units, (k + terms)[None, :], H, GATES)
            u = add_products(u, streamed, 0, operand, GATES, PRECISION)
    return u


@triton.jit
def _biases(b, offsets, inside, gate_stride, UNITS: tl.constexpr, ROWS: tl.constexpr, GATES: tl.constexpr):
    """Per gate, what a product starts from: its units' bias in every row, zero where b is None."""
    blocks = ()
    for g in tl.static_range(GATES):
        block = tl.zeros((UNITS, ROWS), tl.float32)
        if b is not None:
            block += tl.load(b + g * gate_stride + offsets, mask=inside, other=0.0).to(tl.float32)
        blocks = blocks + (block,)
    return blocks
