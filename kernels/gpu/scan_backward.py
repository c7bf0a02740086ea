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
    store_states,
)
from .grid_sync import arrive, wait_for
from .ragged import choose, marked, only, restarted


@triton.jit
def scan_backward(
    dy, dy_time, dy_row, w_hh,  # (T, B, D H), or None; (D, G H, H)
    h_0, c_0,  # (D, B, H); c_0 None without a second state
    h, c, gates,  # (D, T, B, H), (D, T, B, H), (D, T, SAVED, B, H), as `scan_forward` kept them
    dx, du,  # (D, T, B, G H): gradients of input and recurrent pre-activations; du None where it is dx
    dh, dc,  # (D, B, H) float32: gradients of h_n and c_n, then of h_0 and c_0; between launches what is carried
    lengths, reset, reset_time, reset_row, reset_h, reset_c,  # as for `scan_forward`
    fresh_dh, fresh_dc,  # (D, B, H) float32, zero; None without reset_h, reset_c: see `_passed_on`
    counters,  # as for `scan_forward`
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
    ends = lengths if lengths is None else tl.load(lengths + rows, mask=rows < B, other=0)
    w, later = (), ()
    if REGIME == "whole" or REGIME == "grid":
        w = resident_weights(w_hh, 1, H, units, terms[None, :], H, GATES, CHUNK, CHUNKS)
    if REGIME == "whole":  # the gates' gradients of the step after: none yet
        later = _rounded((tl.zeros((UNITS, ROWS), tl.float32),) * GATES, dx.dtype.element_ty, GATES)
    for step in tl.range(first, tl.minimum(last, T), num_stages=1):
        time = (1 - d) * (T - 1) + (2 * d - 1) * step
        here, after = (d * T + time) * B * H, time + 1 - 2 * d
        taken = inside if lengths is None else inside & (time < ends)
        saved = load_each(gates + here * SAVED, B * H, in_state, taken, SAVED)
        s, s_next = _around(h, c, h_0, c_0, d, step == T - 1, here, state, in_state, taken, B * H, STATES)
        gradient = carried[0]
        if dy is not None:
            gradient += tl.load(dy + time * dy_time + rows * dy_row + d * H + units, mask=taken, other=0.0)
        if step > 0:
            gradient = _through_weights(
                gradient, later, recurrent + (d * T + after) * B * H * GATES, reset, after * reset_time, reset_row, w,
                w_hh, counters, step, units, rows, terms, B, H, GATES, REGIME, UNITS, CHUNK, CHUNKS, PRECISION,
            )  # fmt: skip
        incoming = (gradient,) + carried[1:]
        fresh = reset if reset is None else marked(reset + time * reset_time, reset_row, rows, B)
        s = s if reset is None else restarted(s, fresh, reset_h, reset_c, state + in_state, inside, STATES)
        inputs, recurrents, carried = _back(incoming, saved, s, s_next, lengths, taken, CELL, GATES, STATES)
        store_each(inputs, dx + here * GATES, H, wide, inside, GATES)
        if du is not None:
            store_each(recurrents, du + here * GATES, H, wide, inside, GATES)
        if REGIME == "grid" or REGIME == "streamed":
            arrive(counters + (group * UNITS // CHUNK if REGIME == "grid" else 0))
        recurrents, carried = _passed_on(
            recurrents, carried, fresh, fresh_dh, fresh_dc, state + in_state, inside, GATES, STATES
        )
        if REGIME == "whole":
            later = _rounded(recurrents, dx.dtype.element_ty, GATES)
    gradient = carried[0]
    if REGIME == "whole" or last > T:  # what only this program knows, or what comes from the forward's first step
        gradient = _through_weights(
            gradient, later, recurrent + d * (2 * T - 1) * B * H * GATES, reset, d * (T - 1) * reset_time, reset_row, w,
            w_hh, counters, T, units, rows, terms, B, H, GATES, REGIME, UNITS, CHUNK, CHUNKS, PRECISION,
        )  # fmt: skip
    store_states((gradient,) + carried[1:], dh, dc, state + in_state, inside, STATES)


@triton.jit
def _around(h, c, h_0, c_0, d, is_first, here, state, offsets, mask, step, STATES: tl.constexpr):
    """The states before and after the step whose states begin at `here`; steps are `step` elements apart, and before
    the first one, in the order of the forward, are h_0 and c_0."""
    before = here + (2 * d - 1) * step
    c_before = c if c is None else either(is_first, c_0 + state, c + before)
    s_next = load_states(h + here, c if c is None else c + here, offsets, mask, STATES)
    return load_states(either(is_first, h_0 + state, h + before), c_before, offsets, mask, STATES), s_next


@triton.jit
def _back(incoming, saved, s, s_next, lengths, taken, CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr):
    """What the cell's backward makes of the states' gradients; in rows that have ended, these themselves."""
    inputs, recurrents, carried = CELL(incoming, saved, s, s_next)
    carried = (tl.zeros_like(incoming[0]) + carried[0],) + carried[1:]
    if lengths is not None:
        inputs, recurrents = only(taken, inputs, GATES), only(taken, recurrents, GATES)
        carried = choose(taken, carried, incoming, STATES)
    return inputs, recurrents, carried


@triton.jit
def _passed_on(
    recurrents, carried, fresh, fresh_dh, fresh_dc, offsets, inside, GATES: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """What of a step's gradients the step before it gets: nothing in rows that were `fresh`, where all belongs to
    reset_h and reset_c. What does not lead to them through W_hh is added to fresh_dh and fresh_dc."""
    if fresh_dh is not None:
        tl.atomic_add(fresh_dh + offsets, carried[0], mask=inside & fresh, sem="relaxed")
        if STATES == 2:
            tl.atomic_add(fresh_dc + offsets, carried[1], mask=inside & fresh, sem="relaxed")
    if fresh is not None:
        recurrents, carried = only(fresh == 0, recurrents, GATES), only(fresh == 0, carried, STATES)
    return recurrents, carried


@triton.jit
def _through_weights(
    total, later, source, reset, reset_step, reset_row, w, w_hh, counters, count, units, rows, terms, B, H,
    GATES: tl.constexpr, REGIME: tl.constexpr, UNITS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total + the gates' gradients of a step times W_hh: this program's own, or those of all units at `source`
    (B, G H), of which rows that started again before that step, marked at reset + reset_step, count as zero."""
    if REGIME == "whole":
        for g in tl.static_range(GATES):
            total = add_product(total, w[g], later[g], PRECISION)
    else:
        present, row_starts = rows < B, rows * (GATES * H)
        if reset is not None:
            present = present & (marked(reset + reset_step, reset_row, rows, B) == 0)
        if REGIME == "grid":
            for k in tl.static_range(CHUNKS):
                wait_for(counters + k, count * producers(k, H, UNITS, CHUNK))
                for g in tl.static_range(GATES):
                    operand = load_operand(source + g * H + row_starts, (k * CHUNK + terms)[:, None], present, H)
                    total = add_product(total, w[k * GATES + g], operand, PRECISION)
        else:
            if REGIME == "streamed":
                wait_for(counters, count * tl.cdiv(H, UNITS))
            for k in range(0, H, CHUNK):
                streamed = load_weights(w_hh, 1, H, units, (k + terms)[None, :], H, GATES)
                for g in tl.static_range(GATES):
                    operand = load_operand(source + g * H + row_starts, (k + terms)[:, None], present, H)
                    total = add_product(total, streamed[g], operand, PRECISION)
    return total


@triton.jit
def _rounded(blocks, dtype: tl.constexpr, COUNT: tl.constexpr):
    results = ()
    for i in tl.static_range(COUNT):
        results = results + (blocks[i].to(dtype),)
    return results
