"""The inputs of a case, and what a library makes of them.

A problem is made once, in the case's own dtype, so that every provider and the float64 reference see the same numbers.
"""

from dataclasses import dataclass

import torch

from .cases import ATTENTION, MODULES, Case


@dataclass(frozen=True)
class Problem:
    """Inputs of a case.

    inputs: for recurrent cases x (T,B,I) or (B,I), then h (L*D,B,H) or (B,H) and, for an LSTM, c like h;
    for attention q, k, v (1,N,T,D), the query (1,N,1,D) for decode. weights: torch.nn's state dict, or None.
    dy: the gradient of y that training starts from, (T,B,D*H), or None.
    """

    case: Case
    inputs: tuple
    weights: dict | None = None
    dy: torch.Tensor | None = None

    def to(self, dtype):
        """The same numbers in another dtype."""
        weights = self.weights and {key: value.to(dtype) for key, value in self.weights.items()}
        dy = None if self.dy is None else self.dy.to(dtype)
        return Problem(self.case, tuple(value.to(dtype) for value in self.inputs), weights, dy)


def module(nn, case, dtype=None):
    """The recurrent module of a case, from a namespace like torch.nn."""
    kind = getattr(nn, MODULES[case.operation])
    if case.cell:
        return kind(case.H, case.H, dtype=dtype)
    return kind(case.H, case.H, case.L, bidirectional=case.bidirectional, dtype=dtype)


def make(case, seed=0):
    """The problem of a case: reproducible inputs, non-zero initial states, torch.nn's own initial weights."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    if case.operation in ATTENTION:
        queries = 1 if case.operation == "decode" else case.T
        return Problem(case, tuple(normal(1, case.N, n, case.D) for n in (queries, case.T, case.T)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = module(torch.nn, case, dtype).state_dict()
    states = 2 if case.operation.startswith("lstm") else 1
    directions = 1 + case.bidirectional
    steps, lead = ((), ()) if case.cell else ((case.T,), (case.L * directions,))
    x = normal(*steps, case.B, case.H)
    given = tuple(normal(*lead, case.B, case.H) for _ in range(states))
    dy = normal(*steps, case.B, case.H * directions) if case.mode == "training" else None
    return Problem(case, (x, *given), weights, dy)


def _flat(outputs):
    """A module's nested outputs as a flat list of tensors."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in _flat(part)]


def call(library, problem):
    """A function without arguments that runs the problem and returns its results as a list of tensors.

    In training mode the results are the outputs, then the gradients of x and of every weight.
    """
    case = problem.case
    if case.operation in ATTENTION:
        q, k, v = problem.inputs

        def attend():
            with torch.no_grad():
                return [library.attention(q, k, v, is_causal=case.causal)]

        return attend

    net = module(library.nn, case, problem.inputs[0].dtype)
    net.load_state_dict(problem.weights)
    x, *states = problem.inputs
    hidden = tuple(states) if len(states) > 1 else states[0]
    if case.mode == "training":
        return _training(net, x.clone().requires_grad_(), hidden, problem.dy)
    net.eval()

    def forward():
        with torch.no_grad():
            return _flat(net(x, hidden))

    return forward


def _training(net, x, hidden, dy):
    leaves = [x, *net.parameters()]

    def train():
        for leaf in leaves:
            leaf.grad = None
        outputs = _flat(net(x, hidden))
        outputs[0].backward(dy)
        return [*(tensor.detach() for tensor in outputs), *(leaf.grad for leaf in leaves)]

    return train
