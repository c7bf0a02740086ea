"""The recurrence backward over time, for any cell, in the regimes of `scan_forward`.

A program has a block of units and a block of rows, as there. For each step, the last of time first: the gradient of h
that comes from the step after it, through W_hh of all gates; the cell's backward; the gates' gradients stored. They are
all that is written: the gradients of weights, biases and inputs are large products of them, made afterwards.

Operations: 2 T B G H H.
"""

import triton
import triton.language as tl

from .blocks import (
    add_product,
    either,
    load_each,
    load_operand,
    load_states,
    load_weights,
    place,
    producers,
    resident_weights,
    store_each,
)
from .grid_sync import arrive, wait_for


@triton.jit
def scan_backward(
    dy, dy_time, dy_row,  # (T, B, D H), or None
    w_hh,  # (D, G H, H)
    h_0, c_0,  # (D, B, H); c_0 None without a second state
    h, c, gates,  # (D, T, B, H), (D, T, B, H), (D, T, SAVED, B, H), as `scan_forward` kept them
    dx, du,  # (D, T, B, G H): gradients of input and recurrent pre-activations; du None where it is dx
    dh, dc,  # (D, B, H) float32: gradients of h_n and c_n, then of h_0 and c_0; between launches what is carried
    counters,  # "grid": (D, blocks of rows, CHUNKS) int32, zero
    T, B, H, first, last,  # the launch takes the steps first ... last - 1 of T + 1; the last one only makes dh
    CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr,
    REGIME: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    d, group, row_group, units, rows, inside = place(B, H, UNITS, ROWS)
    state, in_state, wide, terms = d * B * H, rows * H + units, rows * (GATES * H) + units, tl.arange(0, CHUNK)
    w_hh, counters = w_hh + d * GATES * H * H, counters + row_group * CHUNKS
    recurrent = dx if du is None else du
    carried = load_states(dh, dc, state + in_state, inside, STATES)
    w, later = (), ()
    if REGIME != "stepwise":
        w = resident_weights(w_hh, 1, H, units, terms[None, :], H, GATES, CHUNK, CHUNKS)
    if REGIME == "whole":  # the gates' gradients of the step after: none yet
        later = _rounded((tl.zeros((UNITS, ROWS), tl.float32),) * GATES, dx.dtype.element_ty, GATES)
    for step in tl.range(first, tl.minimum(last, T), num_stages=1):
        time = (1 - d) * (T - 1) + (2 * d - 1) * step
        here, before = (d * T + time) * B * H, (d * T + time - 1 + 2 * d) * B * H
        saved = load_each(gates + here * SAVED, B * H, in_state, inside, SAVED)
        s_next = load_states(h + here, c if c is None else c + here, in_state, inside, STATES)
        is_first = step == T - 1  # in the order of the forward
        c_before = c if c is None else either(is_first, c_0 + state, c + before)
        s = load_states(either(is_first, h_0 + state, h + before), c_before, in_state, inside, STATES)
        gradient = carried[0]
        if dy is not None:
            gradient += tl.load(dy + time * dy_time + rows * dy_row + d * H + units, mask=inside, other=0.0)
        if step > 0:
            source = recurrent + (here + (1 - 2 * d) * B * H) * GATES
            gradient = _through_weights(
                gradient, later, source, w, w_hh, counters, step, units, rows, terms, B, H,
                GATES, REGIME, UNITS, CHUNK, CHUNKS, PRECISION,
            )  # fmt: skip
        inputs, recurrents, carried = CELL((gradient,) + carried[1:], saved, s, s_next)
        store_each(inputs, dx + here * GATES, H, wide, inside, GATES)
        if du is not None:
            store_each(recurrents, du + here * GATES, H, wide, inside, GATES)
        if REGIME == "grid":
            arrive(counters + group * UNITS // CHUNK)
        if REGIME == "whole":
            later = _rounded(recurrents, dx.dtype.element_ty, GATES)
        carried = (tl.zeros((UNITS, ROWS), tl.float32) + carried[0],) + carried[1:]
    gradient = carried[0]
    if last > T:
        source = recurrent + (d * (2 * T - 1)) * B * H * GATES  # the forward's first step
        gradient = _through_weights(
            gradient, later, source, w, w_hh, counters, T, units, rows, terms, B, H,
            GATES, REGIME, UNITS, CHUNK, CHUNKS, PRECISION,
        )  # fmt: skip
    tl.store(dh + state + in_state, gradient, mask=inside)
    if STATES == 2:
        tl.store(dc + state + in_state, carried[1], mask=inside)


@triton.jit
def _through_weights(
    total, later, source, w, w_hh, counters, count, units, rows, terms, B, H,
    GATES: tl.constexpr, REGIME: tl.constexpr, UNITS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total + the gates' gradients of a step times W_hh: this program's own, or those of all units at `source`
    (B, G H)."""
    if REGIME == "whole":
        for g in tl.static_range(GATES):
            total = add_product(total, w[g], later[g], PRECISION)
    elif REGIME == "grid":
        for k in tl.static_range(CHUNKS):
            wait_for(counters + k, count * producers(k, H, UNITS, CHUNK))
            for g in tl.static_range(GATES):
                operand = load_operand(source + g * H, GATES * H, (k * CHUNK + terms)[:, None], rows, B, H)
                total = add_product(total, w[k * GATES + g], operand, PRECISION)
    else:
        for k in range(0, H, CHUNK):
            streamed = load_weights(w_hh, 1, H, units, (k + terms)[None, :], H, GATES)
            for g in tl.static_range(GATES):
                operand = load_operand(source + g * H, GATES * H, (k + terms)[:, None], rows, B, H)
                total = add_product(total, streamed[g], operand, PRECISION)
    return total


@triton.jit
def _rounded(blocks, dtype: tl.constexpr, COUNT: tl.constexpr):
    results = ()
    for i in tl.static_range(COUNT):
        results = results + (blocks[i].to(dtype),)
    return results
