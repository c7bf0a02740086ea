"""The gates of a scan on a GPU, made anew from the states that its forward kept: large products and one pointwise
kernel, with no recurrence. Trusts its arguments, as `scan_gpu`.

The products take h as it was stored, which is what the forward's kernels multiplied. They round the recurrent
pre-activations to x's dtype, as the forward does those of the inputs; the forward's kernels keep them in float32, in
sums of another order. So what an LSTM saves (i, f, g, o) and a GRU (r, z, n and n's recurrent part) may differ from the
forward's in its last bits. It does not depend on c, which was rounded when it was stored; nor on h but through the
products. An RNN saves nothing.
"""

import torch
from torch.nn.functional import linear

from seqkernels.kernels.cells import CELLS
from seqkernels.kernels.gpu.primitives import on_blocks
from seqkernels.kernels.gpu.scan_gates import BLOCK, scan_gates

PRODUCT_ROWS = 1 << 14  # steps times B of a product: enough to fill a GPU, and what they make is small beside the gates


def gates_from_states(cell, x, h0, c0, groups, states, ragged):
    """`gates` as `scan_gpu.forward` returns them.

    x (T, B, I); h0, c0 (D, B, H); groups: each direction's weights; states (S, D, T, B, H); ragged: a `Ragged` with
    time first.
    """
    S, D, T, B, H = states.shape
    gates = x.new_empty(D, T, CELLS[cell].saved, B, H)
    steps = -(-PRODUCT_ROWS // B)
    for d, group in enumerate(groups):
        before = [_before(d, *state, ragged.reset) for state in zip((h0, c0)[:S], states, ragged[2:4])]
        for first in range(0, T, steps):
            part = slice(first, first + steps)
            _write(cell, x[part], group, [s[part] for s in before], gates[d, part])
    return gates.view(-1)


def _before(d, initial, states, fresh, marks):
    """One state of direction d before each step, (T, B, H), from those after each of all directions."""
    first, states = initial[d].unsqueeze(0), states[d]
    before = torch.cat([first, states[:-1]] if d == 0 else [states[1:], first])
    if marks is None:
        return before
    marks = marks.unsqueeze(-1)
    return before.masked_fill(marks, 0) if fresh is None else torch.where(marks, fresh[d], before)


def _write(cell, x, group, before, gates):
    """The gates (T, SAVED, B, H) of some steps of one direction."""
    (w_ih, w_hh, *biases), kind = group, CELLS[cell]
    b_ih, b_hh = biases or (None, None)
    inputs, recurrents = linear(x, w_ih, b_ih), linear(before[0], w_hh, b_hh)
    T, B, H = before[0].shape
    with torch.cuda.device_of(x):
        scan_gates[(-(-H // BLOCK["UNITS"]) * -(-T * B // BLOCK["ROWS"]),)](
            inputs, *inputs.stride()[:2], recurrents, *(*before, None)[:2], gates, T, B, H,
            CELL=on_blocks(cell)[0], GATES=kind.gates, STATES=kind.states, SAVED=kind.saved, **BLOCK,
        )  # fmt: skip
