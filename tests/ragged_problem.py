"""A recurrent layer whose rows end early or start again: its problem for the tests of the scans."""

import torch
from device import there
from scan_problem import Problem

from seqkernels import functional, reference
from seqkernels.ops import scan_cpu
from seqkernels.ops.ragged import Ragged


class RaggedProblem(Problem):
    """A Problem with lengths, a list of B integers or None; with reset, a list of (step, row) or None; and, if `given`,
    with random states to start again from."""

    def __init__(self, cell, shape, dtype, lengths=None, reset=None, given=True):
        super().__init__(cell, shape, dtype)
        T, B = shape[:2]
        marks = None
        if reset is not None:
            marks = torch.zeros(T, B, dtype=torch.bool)
            for step, row in reset:
                marks[step, row] = True
            marks = marks.T if self.batch_first else marks
            if given:
                self.reset_state = [torch.randn_like(s) for s in (self.h, self.c) if s is not None]
        self.ragged = Ragged(None if lengths is None else torch.tensor(lengths), marks, *self.reset_state)

    def ours(self, *enters, driver=scan_cpu, **options):
        ragged = self.ragged if driver is scan_cpu else Ragged(*there(*self.ragged))
        return super().ours(*enters, driver=driver, ragged=ragged, **options)

    def run(self, x, h, c, rest):
        weights, state = rest[: len(self.weights)], rest[len(self.weights) :]
        given = (h, c, weights, self.batch_first, *self.ragged[:2], (*state, None)[:2] if state else None)
        return reference.scan(self.cell, x, *given)[:3]


def twice(problem, dtype, impl, **options):
    """Results, gradients, and gradients of the gradients' squares, by name, through `functional.scan`."""
    tensors = (problem.x, problem.h, problem.c, *problem.weights, *problem.reset_state)
    x, h, c, *rest = leaves = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
    weights, state = rest[: len(problem.weights)], rest[len(problem.weights) :]
    lengths, reset, *_ = problem.ragged
    options |= {"lengths": lengths, "reset": reset, "reset_state": (*state, None)[:2] if state else None}
    given = (problem.cell, x, h, c, weights)
    out = [t for t in functional.scan(*given, batch_first=problem.batch_first, impl=impl, **options) if t is not None]
    wanted = [leaf for leaf in leaves if leaf is not None]
    first = torch.autograd.grad(sum(t.square().sum() for t in out), wanted, create_graph=True)
    second = torch.autograd.grad(sum(t.square().sum() for t in first), wanted)
    return {f"{i}": t.detach() for i, t in enumerate((*out, *first, *second))}


def empty_batch():
    """The arguments and options of `functional.scan` for a batch of no rows, whose gradients are of the right sizes."""
    problem = RaggedProblem("lstm", (2, 0, 3, 4, 1, False, True), torch.float32, None, [])
    dreset = [t.requires_grad_() for t in problem.reset_state]
    given = ("lstm", problem.x, problem.h, problem.c, problem.weights)
    options = {"lengths": torch.ones(0).long(), "reset": problem.ragged.reset, "reset_state": dreset}
    y, h_n, c_n, *_ = functional.scan(*given, **options, impl="kernel")
    assert [t.shape for t in torch.autograd.grad(y.sum() + c_n.sum(), dreset)] == [(1, 0, 4)] * 2
    return given, options
