"""What the tests of streams on a CPU and on a GPU share."""

import pytest
import torch


def assert_gradients_refuse_what_was_overwritten(stream, x):
    """A loss over the stream's own memory, its output or a state, cannot go backward after the next step."""
    for pick in (lambda: stream(x), lambda: stream.state[0], lambda: stream.state[1]):
        picked = pick()
        weight = torch.ones_like(picked, requires_grad=True)
        loss = (picked * weight).sum()
        stream(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
