"""Loops over a cell, ours and torch's of the same weights."""

import torch

from seqkernels import nn

CELLS = ("RNNCell", "LSTMCell", "GRUCell")


def make(kind, I=5, H=33, dtype=torch.float32, **options):
    torch.manual_seed(0)
    ours, theirs = (getattr(library, kind)(I, H, dtype=dtype, **options) for library in (nn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def steps(T=7, batch=3, I=5, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(T, batch, I, dtype=dtype)


def loop(cell, xs, state=None, take=lambda cell, x, state: cell(x, state)):
    """A loss of all steps."""
    total = 0
    for x in xs:
        state = take(cell, x, state)
        total = total + sum(s.sin().sum() for s in (state if isinstance(state, tuple) else (state,)))
    return total


def gradients(cell, xs):
    return torch.autograd.grad(loop(cell, xs), [*cell.parameters(), *([xs] if xs.requires_grad else [])])


def close(mine, wanted, tolerance=1e-5):
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().amax().item() if b.numel() else 0.0)
        )
