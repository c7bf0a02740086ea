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

    def without_idle_resets(self, batch_first):
        """The same, but that no row that has ended starts again."""
        if self.lengths is None or self.reset is None:
            return self
        ended = past(self.lengths, self.reset.shape[1 if batch_first else 0])
        return self._replace(reset=self.reset & ~(ended.mT if batch_first else ended))

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
    ended = past(lengths, x.shape[1 if batch_first else 0])
    return x.masked_fill((ended.mT if batch_first else ended).unsqueeze(-1), 0)


def past(lengths, T):
    """Which rows have ended at which step: (T, B) bool."""
    return torch.arange(T, device=lengths.device)[:, None] >= lengths
