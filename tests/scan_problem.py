"""A recurrent layer's problem for the scan tests: inputs, our results, and torch.nn's in any dtype."""

import math

import torch
from device import back, there
from seqkernels.kernels.cells import CELLS

from seqkernels import reference
from seqkernels.ops import scan_cpu

TORCH = {
    "rnn_tanh": torch.nn.RNN,
    "rnn_relu": lambda *sizes, **options: torch.nn.RNN(*sizes, nonlinearity="relu", **options),
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
}


def same_bits(a, b):
    """Equal, and NaN where the other is NaN."""
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def assert_same(a, b):
    """The same bits on a CPU; close on a GPU, where two kernels are compiled apart and may fuse other operations."""
    on_cpu = a.device.type == "cpu"
    torch.testing.assert_close(a, b, equal_nan=True, **({"rtol": 0, "atol": 0} if on_cpu else {}))


class Problem:
    """A layer with random weights, inputs, non-zero initial states, and gradients of all its outputs."""

    reset_state = ()

    def __init__(self, cell, shape, dtype, scale=1.0):
        T, B, I, H, D, self.batch_first, bias = shape
        self.cell, self.D = cell, D
        bound = 1 / math.sqrt(H)
        sizes = [(CELLS[cell].gates * H, I), (CELLS[cell].gates * H, H), *[(CELLS[cell].gates * H,)] * (2 * bias)]
        self.weights = [torch.empty(s, dtype=dtype).uniform_(-bound, bound) for _ in range(D) for s in sizes]
        sequence = (B, T) if self.batch_first else (T, B)
        self.x = scale * torch.randn(*sequence, I, dtype=dtype)
        self.h = torch.randn(D, B, H, dtype=dtype)
        self.c = torch.randn(D, B, H, dtype=dtype) if cell == "lstm" else None
        self.dy = torch.randn(*sequence, D * H, dtype=dtype)
        self.dh = torch.randn(D, B, H, dtype=dtype)
        self.dc = torch.randn(D, B, H, dtype=dtype) if cell == "lstm" else None

    def ours(self, dy=True, dstates=True, after_forward=lambda y: None, driver=scan_cpu, recompute=False, **options):
        to_driver = there if driver is not scan_cpu else lambda *values: values
        x, h, c, weights = to_driver(self.x, self.h, self.c, self.weights)
        arguments = (self.cell, x, h, c, weights, self.batch_first)
        saving = {**options, "recompute": True} if recompute else options
        y, h_n, c_n, states, gates = driver.forward(*arguments, True, **saving)
        plain = driver.forward(*arguments, False, **options)
        assert (c_n is None) == (plain[2] is None) == (self.c is None)
        for kept, quick in zip((y, h_n, c_n)[: 2 + (self.c is not None)], plain):
            assert_same(kept, quick)
        kept = [t for t in (gates, states) if t is not None]
        before = [t.clone() for t in kept]
        after_forward(y)
        upstream = (self.dy if dy else None, *((self.dh, self.dc) if dstates else (None, None)))
        saved = (x, h, c, weights, states, gates, self.batch_first)
        gradients = driver.backward(self.cell, *to_driver(*upstream), *saved, True, True, **options)
        dx, dh, dc, dweights, *dreset = gradients
        assert all(map(same_bits, kept, before)), "the backward wrote to what the forward saved"
        return self.named(back(y, h_n, c_n), back(dx, dh, dc, *dweights, *dreset))

    def named(self, outputs, gradients):
        names = ["y", "h_n", "c_n", "dx", "dh_0", "dc_0", *(f"dw{i}" for i in range(len(self.weights)))]
        names += ["dreset_h", "dreset_c"]
        pairs = zip(names, (*outputs, *gradients))
        return {n: v.detach() for n, v in pairs if v is not None and not (self.c is None and n in ("c_n", "dc_0"))}

    def by_reference(self, dtype, dy=True, dstates=True):
        tensors = (self.x, self.h, self.c, *self.weights, *self.reset_state)
        leaves = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
        x, h, c, *rest = leaves
        outputs = self.run(x, h, c, rest)
        seeds = [None if t is None else t.to(dtype) for t in (self.dy, self.dh, self.dc)]
        chosen = [(o, s) for o, s, use in zip(outputs, seeds, (dy, dstates, dstates)) if use and s is not None]
        wanted = [leaf for leaf in leaves if leaf is not None]
        gradients = iter(torch.autograd.grad([o for o, _ in chosen], wanted, [s for _, s in chosen]))
        return self.named(outputs, [None if leaf is None else next(gradients) for leaf in leaves])

    def run(self, x, h, c, weights):
        """torch.nn's layer where there is one, else the reference."""
        if self.cell not in TORCH:
            y, h_n, c_n, *_ = reference.scan(self.cell, x, h, c, weights, self.batch_first)
            return y, h_n, c_n
        bias = len(weights) // self.D == 4
        options = {"bias": bias, "batch_first": self.batch_first, "bidirectional": self.D == 2}
        layer = TORCH[self.cell](x.shape[2], h.shape[2], dtype=x.dtype, **options)
        parameters = dict(zip([n for n, _ in layer.named_parameters()], weights))
        y, states = torch.func.functional_call(layer, parameters, (x, h if c is None else (h, c)))
        return (y, *states) if c is not None else (y, states, None)
