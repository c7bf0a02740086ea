"""A single step backward on a CPU, where the weights' gradients are gathered (gathered_rows_cpu.py)."""

from functools import partial

import torch

from .compiled import computed
from .gathered_rows_cpu import GatheredRows
from .scan_cpu_backward import sizes_of
from .scan_rows import address
from .workspace import workspace

_NO_SUMS, _DENSE = (0,) * 4, (0,) * 6  # arguments of the kernel: no weights' gradients; no rows that end or start again


class StepBackward:
    """Of steps of one direction and of the same sizes, B rows."""

    def __init__(self, cell, dtype, B, I, H):
        self._cell, self._dtype, self._wide, self._numbers = cell, dtype, computed(dtype), (1, B, I, H)
        self._sizes = sizes = sizes_of(cell, dtype, 1, B, I, H, B)
        self._c = sizes.size * B * H  # bytes from h to c in the states

    def __call__(self, shared, upstream, needs_dx, x, h0, c0, *saved):
        """dx, dh0 and dc0, from the gradients of y, h_n and c_n, upstream, y being absent or h_n in another shape.

        shared: the SharedWeights. x (*, I), h0 and c0 (*, H), of B rows, c0 None where there is none;
        saved: the weights, and the states and gates of the forward.
        """
        *weights, states, gates = saved
        h0, states, gates = (t.contiguous() for t in (h0, states, gates))  # hooks may have changed the strides
        wide, (_, B, I, H), sizes = self._wide, self._numbers, self._sizes
        *dhs, dc_n = upstream
        dhs = [d for d in dhs if d is not None] or [torch.zeros_like(h0)]
        dh_n = (dhs[0] if len(dhs) == 1 else dhs[0].reshape(h0.shape) + dhs[1].reshape(h0.shape)).contiguous()
        dh0 = torch.empty_like(h0, dtype=wide)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_dx else None
        if c0 is None:
            dc0, c = None, (0, 0)
        else:
            c0 = c0.to(wide).contiguous()
            dc0 = c0.new_zeros(c0.shape) if dc_n is None else torch.empty_like(c0).copy_(dc_n)
            c = (states.data_ptr() + self._c, B * H)
        direct = torch.zeros_like(dh0) if sizes.shape.has_direct_h else None
        rows = shared.gradients(partial(GatheredRows, self._cell, weights))
        w_hh = shared.kept.backward(weights, 0, "h")
        w_ih = shared.kept.backward(weights, 0, "x") if needs_dx else None
        _, members, by_rows = sizes.split()
        memory = workspace(members * sizes.each[0], wide)
        given = (0, 0, 0, dh_n.data_ptr(), 0, 0, 0, states.data_ptr(), B * H, h0.data_ptr(), address(c0, 0), *c)
        made = (*(address(t, 0) for t in (w_hh, w_ih, direct, dc0, dh0, dx)), 0, I, 0)
        scratch = (*rows.take(B, x, h0), memory.data_ptr(), 0, 0)
        arguments = (*given, gates.data_ptr(), 1, *made, *_NO_SUMS, *scratch)
        sizes.run((*arguments, *self._numbers, 0, 1, *_DENSE, by_rows), members)
        return dx, dh0.to(self._dtype), None if dc0 is None else dc0.to(self._dtype)
