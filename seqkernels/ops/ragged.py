"""Rows that end early, or start again: what `seqkernels::scan` takes of them, beside the tensors of every scan."""

from typing import NamedTuple

import torch
from torch import Tensor


class Ragged(NamedTuple):
    """As in `seqkernels.reference.scan`, each None where it is not given.

    With batch_sizes, those of a `PackedSequence`, x is its data, (rows, I), y is (rows, D*H), and there is nothing else
    of these. The rows of the states stand in the same order.
    """

    lengths: Tensor | None = None  # (B,) integers
    reset: Tensor | None = None  # (T, B) bool, or (B, T) with batch_first
    reset_h: Tensor | None = None  # (D, B, H)
    reset_c: Tensor | None = None  # (D, B, H)
    batch_sizes: Tensor | None = None  # (T,) int64, on the CPU

    def time_first(self, batch_first):
        """The same, but that reset is (T, B), and that no row that has ended starts again."""
        if self.reset is None:
            return self
        reset = self.reset.mT if batch_first else self.reset
        return self._replace(reset=reset if self.lengths is None else reset & ~past(self.lengths, len(reset)))

    def for_kernels(self):
        """The kernels' arguments, reset being (T, B)."""
        lengths, *states = (None if t is None else t.contiguous() for t in (self.lengths, self.reset_h, self.reset_c))
        marks = (None, 0, 0) if self.reset is None else (self.reset.view(torch.uint8), *self.reset.stride())
        return (lengths, *marks, *states)


NOT_RAGGED = Ragged()


def hidden(x, lengths, batch_first):
    """x (T, B, *), or (B, T, *) with batch_first, with zero for what lies past the rows' ends, whatever it is; x itself
    where lengths is None."""
    if lengths is None:
        return x
    ended = past(lengths, x.shape[1 if batch_first else 0])
    return x.masked_fill((ended.mT if batch_first else ended).unsqueeze(-1), 0)


def past(lengths, T):
    """Which rows have ended at which step: (T, B) bool."""
    return torch.arange(T, device=lengths.device)[:, None] >= lengths
