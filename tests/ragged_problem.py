"""A recurrent layer whose rows end early or start again: its problem for the tests of the scans on a GPU."""

import torch
from device import there
from scan_problem import Problem

from seqkernels import reference
from seqkernels.ops import scan_gpu
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

    def ours(self, *enters, **options):
        return super().ours(*enters, driver=scan_gpu, ragged=Ragged(*there(*self.ragged)), **options)

    def run(self, x, h, c, rest):
        weights, state = rest[: len(self.weights)], rest[len(self.weights) :]
        given = (h, c, weights, self.batch_first, *self.ragged[:2], (*state, None)[:2] if state else None)
        return reference.scan(self.cell, x, *given)[:3]
