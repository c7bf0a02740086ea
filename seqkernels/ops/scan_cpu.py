"""The scan on a CPU, forward: allocates, packs, splits over threads, and calls the kernel. Trusts its arguments.

All pointers that reach a kernel come from tensors whose extents are fixed here: contiguous ones by their sizes
(kernels/cpu/layout.py), and x, y and their gradients by (T, B, last dimension of stride 1).
"""

import torch

from seqkernels.kernels.cells import CELLS

from . import threads
from .compiled import compiled
from .packed import PackedWeights, pack_count
from .scan_cpu_backward import backward
from .splits import parts_for, row_ranges
from .workspace import leased, on_huge_pages, workspace

__all__ = ["MAKES_GATES", "backward", "forward", "gates_size", "pack_count"]

MAKES_GATES = False  # whether `backward` makes the gates anew where only the states were kept


def gates_size(cell, T, B, H, D, dtype):
    """Elements of the `gates` that `forward(save=True)` returns."""
    shape = compiled().layout(cell, dtype.itemsize, True)
    return D * T * B * shape.slabs(H) * shape.gate_row


def forward(cell, x, h0, c0, weights, batch_first, save, packed=None):
    """y, h_n, c_n, states, gates of one layer of D directions.

    x (T, B, I) or, with batch_first, (B, T, I), last stride 1; h0, c0 (D, B, H) contiguous (c0 None but for an LSTM);
    weights: per direction w_ih (G H, I), w_hh (G H, H) and, or not, b_ih, b_hh (G H). y (T, B, D H) or (B, T, D H);
    h_n, c_n (D, B, H). For save=True, what `backward` needs: the S states after each step, (S, D, T, B, H) in the
    order of the steps, and gates, opaque. They share no memory with y, which its owner may write to. What is not there
    is None.
    """
    D, B, H = h0.shape
    time = 1 if batch_first else 0
    T, I = x.shape[time], x.shape[2]
    size = x.element_size()
    shape = compiled().layout(cell, size, save)
    if packed is None:
        packed = PackedWeights(cell, weights)
    y = on_huge_pages(x.new_empty((B, T, D * H) if batch_first else (T, B, D * H)))
    h_n = torch.empty_like(h0)
    c_n = None if c0 is None else torch.empty_like(c0)
    S = CELLS[cell].states
    states = leased(S * D * T * B * H, x.dtype).view(S, D, T, B, H) if save else None
    chunk = shape.slabs(H) * shape.gate_row * B * (T if save else min(T, compiled().steps(B)))
    gates = leased(D * chunk, x.dtype) if save else workspace(D * chunk, x.dtype)
    scan = compiled().kernel("scan_forward", cell=cell, size=size, save=save)
    x_time, y_time = x.stride(time), y.stride(time)
    rows = row_ranges(B, shape.vectors, parts_for(2.0 * T * B * shape.gates * H * (I + H)) // D)
    tasks = []
    for d in range(D):
        last = (T - 1) * d  # the second direction starts at the last step
        sign = 1 - 2 * d
        state = size * d * B * H
        outputs = (y.data_ptr() + size * (y_time * last + d * H), sign * y_time, y.stride(1 - time))
        h, c = outputs, (0 if c_n is None else c_n.data_ptr() + state, 0)
        if save:
            h, c = (states[0, d].data_ptr(), B * H, H), (states[S - 1, d].data_ptr(), B * H)
        arguments = (
            *(x.data_ptr() + size * x_time * last, sign * x_time, x.stride(1 - time)),
            *packed.directions[d],
            *(h0.data_ptr() + state, 0 if c0 is None else c0.data_ptr() + state),
            *outputs,
            *h,
            *c,
            *(gates.data_ptr() + size * d * chunk, int(save)),
            *(T, B, I, H),
        )
        for first, end in rows:
            tasks.append((scan, (*arguments, first, end, h_n.data_ptr() + state)))
    _run(tasks)
    if save and c0 is not None:
        c_n.copy_(states[1, :, T - 1])
    return y, h_n, c_n, states, gates if save else None


def _run(tasks):
    if len(tasks) == 1:
        function, arguments = tasks[0]
        function(*arguments)
    else:
        threads.run([lambda f=f, a=a: f(*a) for f, a in tasks])
