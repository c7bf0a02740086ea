"""One time step of one layer in one direction, for any cell: the products with x and with h, then the cell.

A program has a block of units, all their gates, and a block of rows, and walks over the inputs and then over h in
blocks of terms. The weights lie as torch.nn has them: a gate of a unit is a row of terms.

Of one row, each thread loads terms 16 bytes at a time, several gates and blocks at once, multiplies and keeps sums of
its own; only at the end threads add up. Of more rows, the blocks are operands of tensor cores.

Operations: 2 B G H (I + H). Bytes: the weights, G H (I + H), once for each block of rows, which for one block is the
floor; x and h, B (I + H), once for each block of units; the states, (1 + 2 (S - 1)) B H.
"""

import triton
import triton.language as tl

from .blocks import add_products, load_states, place


@triton.jit
def step(
    x, x_row,  # (B, I), rows x_row elements apart
    h, c,  # (B, H), contiguous; c None without a second state
    w_ih, w_hh,  # (G H, I), (G H, H), contiguous
    b_ih, b_hh,  # (G H), or None
    h_next, c_next,  # like h and c. c_next may be c; h_next is not h, which some programs read while others write
    B, I, H,
    CELL: tl.constexpr, GATES: tl.constexpr, STATES: tl.constexpr,
    UNITS: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr, UNROLL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    _, _, _, units, rows, inside = place(B, H, UNITS, ROWS)
    units = units.to(tl.int64)
    at = rows * H + units
    states = load_states(h, c, at, inside, STATES)
    u_x = _product(b_ih, w_ih, x, x_row, units, rows, B, I, H, GATES, UNITS, ROWS, TERMS, UNROLL, PRECISION)
    u_h = _product(b_hh, w_hh, h, H, units, rows, B, H, H, GATES, UNITS, ROWS, TERMS, UNROLL, PRECISION)
    states, _ = CELL(u_x, u_h, states)
    tl.store(h_next + at, states[0].to(h_next.dtype.element_ty), mask=inside)
    if STATES == 2:
        tl.store(c_next + at, states[1].to(c_next.dtype.element_ty), mask=inside)


@triton.jit
def _product(
    b, w, source, row_stride, units, rows, B, K, H,
    GATES: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr, UNROLL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """For each gate, (units, rows) in float32: b (GATES H), if any, plus w (GATES H, K) times source (B, K)."""
    biases, sums = (), ()
    for g in tl.static_range(GATES):
        bias = tl.zeros((UNITS, 1), tl.float32)
        if b is not None:
            bias += tl.load(b + g * H + units, mask=units < H, other=0.0).to(tl.float32)
        biases = biases + (bias,)
        sums = sums + (tl.zeros((UNITS, TERMS if ROWS == 1 else ROWS), tl.float32),)
    source += rows * row_stride
    for k in tl.range(0, K, TERMS, loop_unroll_factor=UNROLL):
        terms = (k + tl.arange(0, TERMS))[None, :]
        inside = (units < H) & (terms < K)
        weights = ()
        for g in tl.static_range(GATES):
            weights = weights + (tl.load(w + (g * H + units) * K + terms, mask=inside, other=0.0),)
        if ROWS == 1:
            # A copy for each unit, so that it is spread over the threads as the weights are.
            operand = tl.load(source + terms + 0 * units, mask=inside, other=0.0).to(tl.float32)
            sums = _add_multiples(sums, weights, operand, GATES)
        else:
            terms = (k + tl.arange(0, TERMS))[:, None]
            operand = tl.load(source + terms, mask=(terms < K) & (rows < B), other=0.0)
            sums = add_products(sums, weights, 0, operand, GATES, PRECISION)
    results = ()
    for g in tl.static_range(GATES):
        total = tl.sum(sums[g], axis=1, keep_dims=True) if ROWS == 1 else sums[g]
        results = results + (total + biases[g],)
    return results


@triton.jit
def _add_multiples(sums, weights, operand, GATES: tl.constexpr):
    """For each gate, sums[g] plus the weights times the operand, element by element."""
    results = ()
    for g in tl.static_range(GATES):
        results = results + (sums[g] + weights[g].to(tl.float32) * operand,)
    return results
