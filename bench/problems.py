"""The inputs of a case, and what a library makes of them.

A problem is made once, in the case's own dtype, so that every provider and the float64 reference see the same numbers.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .cases import ATTENTION, MODULES, Case


@dataclass(frozen=True)
class Problem:
    """Inputs of a case.

    inputs: for recurrent cases x (T,B,I), or (B,I) for a cell's step, then h (L*D,B,H) or (B,H) and, for an LSTM, c
    like h;
    for attention q, k, v (B,N,T,D), the query (B,N,1,D) for decode. weights: torch.nn's state dict, or None.
    dy: the gradient of y that training starts from, (T,B,D*H), that of attention's output, like q, or None.
    batch_sizes: of ragged rows the rows at each step, (T,) int64; x and dy are the data of a PackedSequence then,
    (the sum of batch_sizes, I) and (that, D*H).
    """

    case: Case
    inputs: tuple
    weights: dict | None = None
    dy: torch.Tensor | None = None
    batch_sizes: torch.Tensor | None = None

    def to(self, dtype):
        """The same numbers in another dtype."""
        weights = self.weights and {key: value.to(dtype) for key, value in self.weights.items()}
        dy = None if self.dy is None else self.dy.to(dtype)
        return Problem(self.case, tuple(value.to(dtype) for value in self.inputs), weights, dy, self.batch_sizes)

    def given(self, x):
        """x as a module takes it: a PackedSequence of ragged rows."""
        return x if self.batch_sizes is None else PackedSequence(x, self.batch_sizes)


def module(nn, case, dtype=None, device=None):
    """The recurrent module of a case, from a namespace like torch.nn."""
    kind = getattr(nn, MODULES[case.operation])
    if case.cell:
        return kind(case.H, case.H, dtype=dtype, device=device)
    return kind(case.H, case.H, case.L, bidirectional=case.bidirectional, dtype=dtype, device=device)


def loaded(nn, problem):
    """The module of a recurrent problem with its weights, and hx as the module takes it."""
    x, *states = problem.inputs
    net = module(nn, problem.case, x.dtype, x.device)
    net.load_state_dict(problem.weights)
    return net, tuple(states) if len(states) > 1 else states[0]


def make(case, seed=0, device="cpu"):
    """The problem of a case: reproducible inputs, non-zero initial states, torch.nn's own initial weights."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    if case.operation in ATTENTION:
        queries = 1 if case.operation == "decode" else case.T
        q, k, v = (normal(case.B, case.N, n, case.D) for n in (queries, case.T, case.T))
        return Problem(case, (q, k, v), dy=normal(*q.shape) if case.mode in ("training", "backward") else None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = {key: value.to(device) for key, value in module(torch.nn, case, dtype).state_dict().items()}
    states = 2 if case.operation.startswith("lstm") else 1
    directions = 1 + case.bidirectional
    steps = () if case.cell and case.mode == "step" else (case.T,)
    lead = () if case.cell else (case.L * directions,)
    x = normal(*steps, case.B, case.H)
    given = tuple(normal(*lead, case.B, case.H) for _ in range(states))
    dy = normal(*steps, case.B, case.H * directions) if case.mode == "training" else None
    if not case.ragged:
        return Problem(case, (x, *given), weights, dy)
    x, dy = (value if value is None else pack_padded_sequence(value, torch.tensor(case.lengths)) for value in (x, dy))
    return Problem(case, (x.data, *given), weights, None if dy is None else dy.data, x.batch_sizes)


def flat(outputs):
    """A module's nested outputs as a flat list of tensors."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    return [tensor for part in outputs for tensor in flat(part)]


def results(call):
    """Makes a provider's call: the list of its results, in the order of `call`'s."""
    return getattr(call, "arrange", flat)(call())


def grad_mode(case):
    """The context in which a case's calls are made: it is no part of what is timed."""
    return torch.set_grad_enabled(case.mode in ("training", "backward"))


def call(library, problem):
    """A function without arguments that runs the problem. In training mode it returns the outputs, then the gradients
    of x and of every weight, or of q, k and v; in backward mode the gradients of q, k and v, from an output made once;
    else what the library returns. To be called in `grad_mode(case)`. Weights count as changed before every call in
    training mode, as an optimizer changes them: what was packed of them is of no use any more.
    """
    case = problem.case
    if case.operation in ATTENTION:
        return _attention(library, problem)
    net, hidden = loaded(library.nn, problem)
    x = problem.inputs[0]
    if case.mode == "training":
        x = x.clone().requires_grad_()
        run = partial(_in_a_loop, net) if case.cell else net
        return _training(partial(run, problem.given(x), hidden), [x, *net.parameters()], problem.dy)
    return partial(net.eval(), problem.given(x), hidden)


def _attention(library, problem):
    case = problem.case
    if case.mode not in ("training", "backward"):
        return partial(library.attention, *problem.inputs, is_causal=case.causal)
    leaves = [value.clone().requires_grad_() for value in problem.inputs]
    forward = partial(library.attention, *leaves, is_causal=case.causal)
    if case.mode == "training":
        return _training(forward, leaves, problem.dy)
    return partial(torch.autograd.grad, forward(), leaves, problem.dy, retain_graph=True)


def _in_a_loop(cell, x, state):
    """(h of all steps, the last state) of a cell."""
    steps = []
    for x_t in x:
        state = cell(x_t, state)
        steps.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(steps), state


def _training(forward, leaves, dy):
    def train():
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.graph.increment_version(leaves)
        outputs = flat(forward())
        outputs[0].backward(dy)
        return [*(tensor.detach() for tensor in outputs), *(leaf.grad for leaf in leaves)]

    return train
