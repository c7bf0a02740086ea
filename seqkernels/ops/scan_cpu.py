"""The scan on a CPU, forward: allocates, packs, splits over threads, and calls the kernel. Trusts its arguments.

All pointers that reach a kernel come from tensors whose extents are fixed here: contiguous ones by their sizes
(kernels/cpu/layout.py), and x, y and their gradients by (T, B, last dimension of stride 1).
"""

from math import prod

import torch

from seqkernels.kernels.cells import CELLS

from . import threads
from .compiled import compiled
from .packed import PackedWeights, pack_count
from .ragged import NOT_RAGGED
from .scan_cpu_backward import backward
from .scan_rows import address, reset_states, rows_of
from .splits import parts_for, row_ranges
from .workspace import leased, on_huge_pages, workspace

__all__ = ["MAKES_GATES", "all_steps", "backward", "forward", "gates_size", "pack_count"]

MAKES_GATES = True  # whether `backward` makes the gates anew where only the states were kept


def gates_size(cell, T, B, H, D, dtype):
    """Elements of the `gates` that `forward(save=True)` returns."""
    shape = compiled().layout(cell, dtype.itemsize, True)
    return D * T * B * shape.slabs(H) * shape.gate_row


def forward(cell, x, h0, c0, weights, batch_first, save, packed=None, ragged=NOT_RAGGED, recompute=False):
    """y, h_n, c_n, states, gates of one layer of D directions.

    x (T, B, I) or, with batch_first, (B, T, I), last stride 1; h0, c0 (D, B, H) contiguous (c0 None but for an LSTM);
    weights: per direction w_ih (G H, I), w_hh (G H, H) and, or not, b_ih, b_hh (G H). y (T, B, D H) or (B, T, D H);
    h_n, c_n (D, B, H). For save=True, what `backward` needs: the S states after each step, (S, D, T, B, H) in the
    order of the steps, and gates, opaque. They share no memory with y, which its owner may write to. What is not there
    is None.

    ragged: which rows end early or start again. Then states are those of a packed scan (scan_rows.py), one row after
    another from the beginning of each (T, B, H); with batch_sizes, (S, D, rows, H). recompute: save no gates.
    """
    rows = rows_of(x, h0, batch_first, ragged)
    x, h0, c0 = rows.pack(x), rows.sort(h0), rows.sort(c0)
    D, B, H = h0.shape
    size, I, S = x.element_size(), x.shape[-1], CELLS[cell].states
    shape = compiled().layout(cell, size, save)
    if packed is None:
        packed = PackedWeights(cell, weights)
    y = on_huge_pages(rows.empty(x, D * H))
    h_n, c_n = rows.final(h0), None if c0 is None else rows.final(c0)
    states = leased(S * D * prod(rows.kept) * H, x.dtype).view(S, D, *rows.kept, H) if save else None
    keep = save and not recompute
    chunk = shape.slabs(H) * shape.gate_row * (prod(rows.kept) if keep else B * min(rows.T, compiled().steps(B)))
    gates = leased(D * chunk, x.dtype) if keep else workspace(D * chunk, x.dtype)
    scan = compiled().kernel("scan_forward", cell=cell, size=size, save=save)
    ranges = row_ranges(B, shape.vectors, parts_for(2.0 * rows.count * shape.gates * H * (I + H)) // D, rows.lengths)
    others = [None] * 4  # reset_h, reset_c, fresh_h, fresh_c
    if rows.lengths is not None:
        fresh = (None if s is None else torch.empty_like(s) for s in (h0, c0))
        others = [*reset_states(rows, h0, c0, ragged), *fresh]
    tasks = []
    for d in range(D):
        outputs = rows.place(y, d, d * H)
        h, c = outputs, (address(c_n, d), 0)
        if save:
            step = rows.stride * H
            h, c = (address(states[0], d), step, H), (address(states[S - 1], d), step)
        arguments = (
            *rows.place(x, d),
            *packed.directions[d],
            *(address(h0, d), address(c0, d)),
            *outputs,
            *h,
            *c,
            *(gates.data_ptr() + size * d * chunk, int(keep)),
            *(rows.T, B, I, H),
        )
        ends = (address(h_n, d), address(c_n, d), rows.steps[d], rows.marks[d], *(address(t, d) for t in others))
        for first, last in ranges:
            tasks.append((scan, (*arguments, first, last, *ends)))
    _run(tasks)
    if save and rows.count < prod(rows.kept):  # what no row has is never read, but an operator's outputs are defined
        states.view(S, D, -1, H)[:, :, rows.count :].zero_()
        if keep:
            gates.view(D, -1)[:, shape.slabs(H) * shape.gate_row * rows.count :].zero_()
    return rows.unpack(y), rows.unsort(h_n), rows.unsort(c_n), states, gates if keep else None


def all_steps(cell, x, h0, c0, c_n, states, gates, batch_first, ragged):
    """c (D, T, B, H) and gates (D, T, saved, B, H) as `reference.scan` returns them, from what `forward` saved."""
    saved = CELLS[cell].saved
    if 0 in h0.shape:
        return None if c0 is None else states[1], states.new_empty(*states.shape[1:3], saved, *h0.shape[1:])
    rows = rows_of(x, h0, batch_first, ragged)
    directions, c, values = range(len(h0)), None, None
    if c0 is not None:
        steps = [states[1, d].view(-1, h0.shape[2]) for d in directions]
        c = torch.stack([rows.in_time(steps[d], d, (c0 if d else c_n)[d]) for d in directions])
    if saved:
        zero = torch.zeros_like(h0[0]).unsqueeze(1).expand(-1, saved, -1)
        steps = [_saved_values(cell, rows, d, gates.view(len(h0), -1)[d], h0.shape[2]) for d in directions]
        values = torch.stack([rows.in_time(steps[d], d, zero) for d in directions]).transpose(2, 3)
    return c, values


def _saved_values(cell, rows, d, gates, H):
    """(rows, saved, H): what the cell saved, out of a direction's gates."""
    shape, length = compiled().layout(cell, gates.element_size(), True), compiled().steps(rows.B)
    slabs, saved = shape.slabs(H), CELLS[cell].saved
    values = gates.new_empty(rows.count, saved, H)
    for t0 in range(0, rows.T, length):
        first, count = rows.chunk(d, t0, min(length, rows.T - t0))
        chunk = gates[slabs * shape.gate_row * first :][: slabs * shape.gate_row * count]
        chunk = chunk.view(slabs, count, shape.blocks, shape.width, shape.lanes).permute(1, 3, 0, 2, 4)
        values[first : first + count] = chunk[:, :saved].flatten(2)[..., :H]
    return values


def _run(tasks):
    if len(tasks) == 1:
        function, arguments = tasks[0]
        function(*arguments)
    else:
        threads.run([lambda f=f, a=a: f(*a) for f, a in tasks])
