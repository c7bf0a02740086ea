"""The scan on a CPU, forward: allocates, packs, splits over threads, and calls the kernel. Trusts its arguments.

All pointers that reach a kernel come from tensors whose extents are fixed here: contiguous ones by their sizes
(kernels/cpu/layout.py), and x, y and their gradients by (T, B, last dimension of stride 1).
"""

from functools import lru_cache
from math import prod

import torch

from seqkernels.kernels.cells import CELLS

from . import crews, threads
from .compiled import compiled, computed, widths
from .compiled import computed as kept_dtype
from .packed import kept_parameters, packed_by
from .packing import pack_count
from .ragged import NOT_RAGGED
from .scan_cpu_backward import backward
from .scan_rows import address, reset_states, rows_of
from .splits import parts_for, row_ranges
from .workspace import leased, on_huge_pages, workspace

__all__ = ["MAKES_GATES", "all_steps", "backward", "forward", "gates_size", "kept_dtype", "pack_count"]

MAKES_GATES = True  # whether `backward` makes the gates anew where only the states were kept


def gates_size(cell, T, B, H, D, dtype):
    """Elements of the `gates` that `forward(save=True)` returns."""
    shape = compiled().layout(cell, widths(dtype)[0], True)
    return D * T * B * shape.slabs(H) * shape.gate_row


def forward(cell, x, h0, c0, weights, batch_first, save, packed=None, ragged=NOT_RAGGED, recompute=False):
    """y, h_n, c_n, states, gates of one layer of D directions.

    x (T, B, I) or, with batch_first, (B, T, I), last stride 1; h0, c0 (D, B, H) contiguous (c0 None but for an LSTM);
    weights: per direction w_ih (G H, I), w_hh (G H, H) and, or not, b_ih, b_hh (G H). y (T, B, D H) or (B, T, D H);
    h_n, c_n (D, B, H). For save=True, what `backward` needs: the S states after each step, (S, D, T, B, H) in the
    order of the steps, and gates, opaque, both of `kept_dtype`. They share no memory with y, which its owner may write
    to. What is not there is None. Of bfloat16, h stays what it is: it lies in the first half of its part of the states.

    ragged: which rows end early or start again. Then states are those of a packed scan (scan_rows.py), one row after
    another from the beginning of each (T, B, H); with batch_sizes, (S, D, rows, H). recompute: save no gates.
    """
    rows, dtype = rows_of(x, h0, batch_first, ragged), x.dtype
    x, h0, c0 = rows.pack(x), rows.sort(h0), rows.sort(None if c0 is None else c0.to(computed(dtype)))
    D, B, H = h0.shape
    if packed is None:
        kept = kept_parameters(cell, weights, rows.T) if save else None
        packed = packed_by(kept, cell, weights)
    y = on_huge_pages(rows.empty(x, D * H))
    h_n, c_n = rows.final(h0), None if c0 is None else rows.final(c0)
    kept = CELLS[cell].states, D, *rows.kept, H
    places = ([rows.offset(x, d) for d in range(D)], [rows.offset(y, d, d * H) for d in range(D)])
    counts = rows.count, prod(rows.kept), rows.stride
    scan = Scan.of(cell, packed, dtype, (rows.T, B, x.shape[-1], H), *places, save, counts, save and not recompute)
    if rows.lengths is None:
        states, gates = scan.run(packed, kept, x, h0, c0, y, h_n, c_n)
    else:
        fresh = [None if s is None else torch.empty_like(s) for s in (h0, c0)]
        states_ = (*reset_states(rows, h0, c0, ragged), *fresh)
        others = [(rows.steps[d], rows.marks[d], *(address(s, d) for s in states_)) for d in range(D)]
        states, gates = scan.run(packed, kept, x, h0, c0, y, h_n, c_n, lengths=rows.lengths, others=others)
        if save:  # what no row has is never read, but an operator's outputs are defined
            for state, kind in zip(states, (dtype, kept_dtype(dtype))):
                state.view(kind).view(-1)[: D * prod(rows.kept) * H].view(D, -1, H)[:, rows.count :] = 0
            if gates is not None:
                gates.view(D, prod(rows.kept), -1)[:, rows.count :] = 0
    c_n = None if c_n is None else rows.unsort(c_n).to(dtype)
    return rows.unpack(y), rows.unsort(h_n), c_n, states, gates


class Scan:
    """A layer's forward for calls of the same sizes and strides, wherever their memory lies. `of` keeps the last ones.

    weight: bytes, as PackedWeights have it; D directions. sizes: T, B, I, H; x, y: for each direction the bytes to its
    first step and the strides of a step and of a row. rows: how many are computed, how many are kept, and how many a
    step is after the one before; T B, T B and B by default. save: whether states are kept; keeps_gates: whether gates
    are.
    """

    def __init__(self, cell, weight, D, dtype, sizes, x, y, save, rows, keeps_gates):
        T, B, I, H = self._sizes = sizes
        count, kept, self._stride = rows or (T * B, T * B, B)
        self._dtype, self._save, self.keeps_gates = computed(dtype), save, keeps_gates
        size, stored = widths(dtype)
        shape = compiled().layout(cell, size, save)
        widths_ = {"size": size, "stored": stored, "weight": weight}
        self._kernel = compiled().kernel("scan_forward", cell=cell, save=save, **widths_)
        chunk = shape.slabs(H) * shape.gate_row * (kept if keeps_gates else B * min(T, compiled().steps(B)))
        self.gates_elements = D * chunk
        self._vectors, self._operations = shape.vectors, 2.0 * D * count * shape.gates * H * (I + H)
        self._members = crews.members(B, shape, H, shape.slabs(H) // 2)
        self._waits = crews.waits(shape, H, self._operations)
        state = kept * H  # elements of all steps
        self._directions = [
            (*x[d], stored * d * B * H, size * d * B * H, *y[d])
            + (stored * d * state, size * (D + d) * state, size * d * chunk)
            for d in range(D)
        ]

    @classmethod
    def of(cls, cell, packed, dtype, sizes, x, y, save=False, rows=None, keeps_gates=False):
        """For PackedWeights of the cell."""
        given = cell, packed.weight, len(packed.directions), dtype, sizes, tuple(x), tuple(y), save, rows, keeps_gates
        return _scan(cls, given)

    def run(self, packed, kept, *tensors, **ragged):
        """Calls it with x, h0, c0, y, h_n, c_n; returns states, of the sizes `kept`, and gates, where they are kept."""
        states = leased(kept, self._dtype) if self._save else None
        gates = leased((self.gates_elements,), self._dtype) if self.keeps_gates else None
        self(packed, *[0 if t is None else t.data_ptr() for t in (*tensors, states, gates)], **ragged)
        return states, gates

    def __call__(self, packed, x, h0, c0, y, h_n, c_n, states=0, gates=0, lengths=None, others=((0,) * 6,) * 2):
        """PackedWeights, then addresses: of y with its D H columns, of states and gates where they are kept, c0 and c_n
        0 where there is none; but lengths, as `row_ranges` takes them, and others, the kernel's last arguments for each
        direction."""
        save, (_, B, _, H) = self._save, self._sizes
        memory = None if gates else workspace(self.gates_elements, self._dtype)
        gates = gates or memory.data_ptr()
        parts = parts_for(self._operations)
        members = min(parts, self._members) if len(self._directions) == 1 else 1
        rows = row_ranges(B, self._vectors, 1 if members > 1 else parts // len(self._directions), lengths)
        tasks = []
        for direction, weights, other in zip(self._directions, packed.directions, others):
            x_at, *x_steps, h_at, c_at, y_at, y_time, y_row, all_h, all_c, gates_at = direction
            outputs, end = (y + y_at, y_time, y_row), c_n + c_at if c_n else 0
            h, c = outputs, (end, 0)
            if save:
                step = self._stride * H
                h, c = (states + all_h, step, H), (states + all_c if c0 else 0, step)
            inputs = (x + x_at, *x_steps, *weights, h0 + h_at, c0 + c_at if c0 else 0)
            arguments = (*inputs, *outputs, *h, *c, gates + gates_at, int(self.keeps_gates), *self._sizes)
            tasks += [(*arguments, *ends, h_n + h_at, end, *other) for ends in rows]
        if parts == 1:
            for arguments in tasks:
                self._kernel(*arguments, 0, 0)
        elif members > 1:
            crews.run(self._kernel, tasks[0], members, self._waits)
        else:
            threads.run(self._kernel, [(*arguments, 0, 0) for arguments in tasks])


@lru_cache(maxsize=256)
def _scan(kind, given):
    return kind(*given)


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
