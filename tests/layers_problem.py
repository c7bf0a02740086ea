"""Several recurrent layers: their problem for the tests of the wavefront on a GPU."""

import torch
from device import back, there
from scan_problem import TORCH, Problem, assert_same

from seqkernels.ops import wavefront_gpu


class LayersProblem(Problem):
    """L layers of one direction: h, c and their gradients are (L, B, H)."""

    def __init__(self, cell, L, shape, dtype):
        T, B, I, H, batch_first, self.bias = shape
        super().__init__(cell, (T, B, I, H, L, batch_first, self.bias), dtype)
        self.dy, per = self.dy[..., :H], len(self.weights) // L
        self.weights[per:] = Problem(cell, (1, 1, H, H, L - 1, False, self.bias), dtype).weights

    def ours(self, dy=True, dstates=True, **options):
        outputs, saved = self.forward(True, **options)
        plain, _ = self.forward(False, **options)
        for kept, quick in zip(outputs[: 2 + (self.c is not None)], plain):
            assert_same(kept, quick)
        return self.named(back(*outputs), back(*self.backward(saved, dy, dstates, **options)))

    def forward(self, save, **options):
        """(y, h_n, c_n) and what is saved for the backward."""
        given = there(self.x, self.h, self.c, self.weights)
        *outputs, states, gates = wavefront_gpu.forward(self.cell, *given, self.batch_first, save, **options)
        return outputs, (*given, states, gates)

    def backward(self, saved, dy=True, dstates=True, **options):
        """The gradients of x, h, c and each of the weights."""
        upstream = there(self.dy if dy else None, *((self.dh, self.dc) if dstates else (None, None)))
        given = (self.cell, *upstream, *saved, self.batch_first, True, True)
        dx, dh, dc, dweights = wavefront_gpu.backward(*given, **options)
        return dx, dh, dc, *dweights

    def run(self, x, h, c, weights):
        """torch.nn's layers."""
        options = {"bias": self.bias, "batch_first": self.batch_first, "dtype": x.dtype}
        layers = TORCH[self.cell](x.shape[2], h.shape[2], len(h), **options)
        parameters = dict(zip([n for n, _ in layers.named_parameters()], weights))
        y, states = torch.func.functional_call(layers, parameters, (x, h if c is None else (h, c)))
        return (y, *states) if c is not None else (y, states, None)
