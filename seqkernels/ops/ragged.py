"""Rows that end early, or start again: what `seqkernels::scan` takes of them, beside the tensors of every scan."""

from typing import NamedTuple

import torch
from torch import Tensor


class Ragged(NamedTuple):
    """As in `seqkernels.reference.scan`, each None where it is not given."""

    lengths: Tensor | None = None  # (B,) integers
    reset: Tensor | None = None  # (T, B) bool, or (B, T) with batch_first
    reset_h: Tensor | None = None  # (D, B, H)
    reset_c: Tensor | None = None  # (D, B, H)

    def for_kernels(self, time):
        """The kernels' arguments, time being dimension `time` of reset."""
        lengths, reset, *states = (None if t is None else t.contiguous() for t in self)
        marks = (None, 0, 0) if reset is None else (reset.view(torch.uint8), reset.stride(time), reset.stride(1 - time))
        return (lengths, *marks, *states)


NOT_RAGGED = Ragged()


def hidden(x, lengths, batch_first):
    """x (T, B, *), or (B, T, *) with batch_first, with zero for what lies past the rows' ends, whatever it is; x itself
    where lengths is None."""
    if lengths is None:
        return x
    steps = torch.arange(x.shape[1 if batch_first else 0], device=x.device)
    past = steps >= lengths[:, None] if batch_first else steps[:, None] >= lengths
    return x.masked_fill(past.unsqueeze(-1), 0)
