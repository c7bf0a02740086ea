"""The scan on a CPU, forward: allocates, packs, splits over threads, and calls the kernel. Trusts its arguments.

All pointers that reach a kernel come from tensors whose extents are fixed here: contiguous ones by their sizes
(kernels/cpu/layout.py), and x, y and their gradients by (T, B, last dimension of stride 1).
"""

from functools import partial

import torch

from seqkernels.kernels.cells import CELLS

from . import scan_cpu_backward, threads
from .compiled import compiled, computed, widths
from .compiled import computed as kept_dtype
from .packing import PackedWeights, pack_count
from .splits import parts_for, row_ranges
from .workspace import leased, on_huge_pages, workspace

__all__ = ["MAKES_GATES", "backward", "forward", "gates_size", "kept_dtype", "pack_count"]

MAKES_GATES = False  # whether `backward` makes the gates anew where only the states were kept


def gates_size(cell, T, B, H, D, dtype):
    """Elements of the `gates` that `forward(save=True)` returns."""
    shape = compiled().layout(cell, widths(dtype)[0], True)
    return D * T * B * shape.slabs(H) * shape.gate_row


def forward(cell, x, h0, c0, weights, batch_first, save, packed=None):
    """y, h_n, c_n, states, gates of one layer of D directions.

    x (T, B, I) or, with batch_first, (B, T, I), last stride 1; h0, c0 (D, B, H) contiguous (c0 None but for an LSTM);
    weights: per direction w_ih (G H, I), w_hh (G H, H) and, or not, b_ih, b_hh (G H). y (T, B, D H) or (B, T, D H);
    h_n, c_n (D, B, H). For save=True, what `backward` needs: the S states after each step, (S, D, T, B, H) in the
    order of the steps, and gates, opaque, both of `kept_dtype`. They share no memory with y, which its owner may write
    to. What is not there is None. With save, bfloat16 is computed as float32 from the first step to the last.
    """
    if save and x.dtype != kept_dtype(x.dtype):
        return _widened(cell, x, h0, c0, weights, batch_first)
    D, B, H = h0.shape
    time = 1 if batch_first else 0
    T, I = x.shape[time], x.shape[2]
    if packed is None:
        packed = PackedWeights(cell, weights)
    y = on_huge_pages(x.new_empty((B, T, D * H) if batch_first else (T, B, D * H)))
    h_n = torch.empty_like(h0)
    c_n = None if c0 is None else torch.empty_like(c0)
    S = CELLS[cell].states
    states = leased(S * D * T * B * H, x.dtype).view(S, D, T, B, H) if save else None
    scan = Scan(cell, packed, x.dtype, (T, B, I, H), _steps(x, time), _steps(y, time), save)
    gates = leased(scan.gates_elements, x.dtype) if save else None
    ends = h_n.data_ptr(), 0 if c_n is None else c_n.data_ptr()
    kept = (states.data_ptr(), gates.data_ptr()) if save else ()
    scan(x.data_ptr(), h0.data_ptr(), 0 if c0 is None else c0.data_ptr(), y.data_ptr(), *ends, *kept)
    if save and c0 is not None:
        c_n.copy_(states[1, :, T - 1])
    return y, h_n, c_n, states, gates


def _widened(cell, x, h0, c0, weights, batch_first):
    """`forward` with save, in what it keeps; what it returns to be used is x's dtype."""
    wide = _to(kept_dtype(x.dtype), x, h0, c0, *weights)
    *outputs, states, gates = forward(cell, *wide[:3], wide[3:], batch_first, True)
    return *_to(x.dtype, *outputs), states, gates


def backward(cell, dy, dh_n, dc_n, x, h0, c0, weights, states, gates, batch_first, needs_dx, needs_dw):
    """As `scan_cpu_backward.backward`; bfloat16 is computed as float32."""
    run, dtype, rest = scan_cpu_backward.backward, x.dtype, (states, gates, batch_first, needs_dx, needs_dw)
    given = dy, dh_n, dc_n, x, h0, c0
    if dtype == kept_dtype(dtype):
        return run(cell, *given, weights, *rest)
    *gradients, dweights = run(cell, *_to(kept_dtype(dtype), *given), _to(kept_dtype(dtype), *weights), *rest)
    return *_to(dtype, *gradients), dweights and _to(dtype, *dweights)


def _to(dtype, *tensors):
    return [None if t is None else t.to(dtype) for t in tensors]


def _steps(tensor, time):
    """Strides of a step and of a row."""
    return tensor.stride(time), tensor.stride(1 - time)


class Scan:
    """A layer's forward for calls of the same sizes and strides, wherever their memory lies.

    sizes: T, B, I, H; x, y: strides of a step and of a row.
    """

    def __init__(self, cell, packed, dtype, sizes, x, y, save=False):
        T, B, I, H = self._sizes = sizes
        self._packed, self._dtype, self._save = packed, computed(dtype), save
        (size, stored), D = widths(dtype), len(packed.directions)
        shape = compiled().layout(cell, size, save)
        widths_ = {"size": size, "stored": stored, "weight": packed.weight}
        self._kernel = compiled().kernel("scan_forward", cell=cell, save=save, **widths_)
        chunk = shape.slabs(H) * shape.gate_row * B * (T if save else min(T, compiled().steps(B)))
        self.gates_elements = D * chunk
        self._vectors, self._operations = shape.vectors, 2.0 * D * T * B * shape.gates * H * (I + H)
        state, steps = stored * B * H, B * H * (T if save else 0)
        self._states = size * D * steps  # bytes from the h of all steps to their c
        self._wide_c = B * H if stored != size and CELLS[cell].states == 2 else 0  # of a direction, in scratch
        self._directions = []
        for d, weights in enumerate(packed.directions):
            last, sign = (T - 1) * d, 1 - 2 * d  # the second direction starts at the last step
            self._directions.append((
                stored * x[0] * last, (sign * x[0], x[1]), weights, state * d, size * self._wide_c * d,
                stored * (y[0] * last + d * H), (sign * y[0], y[1]), size * steps * d, size * chunk * d,
            ))  # fmt: skip

    def __call__(self, x, h0, c0, y, h_n, c_n, states=0, gates=0):
        """All are addresses: of y with its D H columns, of states and gates where they are kept, c0 and c_n 0 where
        there is none."""
        save, (_, B, _, H), D = self._save, self._sizes, len(self._directions)
        memory = None if save else workspace(self.gates_elements + D * self._wide_c, self._dtype)
        gates = gates if save else memory.data_ptr()
        wide_c = gates + self._dtype.itemsize * self.gates_elements if self._wide_c else 0
        parts = parts_for(self._operations)
        rows = row_ranges(B, self._vectors, parts // D)
        tasks = []
        for x_at, x_steps, weights, state, wide_state, y_at, y_steps, steps, gates_at in self._directions:
            outputs, end = (y + y_at, *y_steps), c_n + state if c_n else 0
            h, c = outputs, (wide_c + wide_state if wide_c else end, 0)
            if save:
                first = states + steps
                h, c = (first, B * H, H), (first + self._states if c0 else first, B * H)
            inputs = (x + x_at, *x_steps, *weights, h0 + state, c0 + state if c0 else 0)
            arguments = (*inputs, *outputs, *h, *c, gates + gates_at, int(save), *self._sizes)
            tasks += [(self._kernel, (*arguments, first, last, h_n + state, end)) for first, last in rows]
        if parts == 1 or len(tasks) == 1:
            for run, arguments in tasks:
                run(*arguments)
        else:
            threads.run([partial(run, *arguments) for run, arguments in tasks])
