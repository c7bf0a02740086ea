"""The steps of a stream on a CPU, layer by layer with kept packed weights."""

from .. import _check
from . import direct


class Layers:
    """The layers of a stream over its memory: a call is a step.

    states: h and, if any, c, each (L, B, H), moved on in place; ys (L, B, H): the layers' outputs; form: what the
    weights are kept as (packing.FORMS).
    """

    def __init__(self, cell, x, states, ys, form):
        self._cell, self._dtype, self._I, self._form = cell, x.dtype, x.shape[-1], form
        self._memory = list(zip(zip(*states), ys))
        self._steps = [None] * len(ys)

    def takes(self, x, weights):
        """Whether a step from plain tensors like these can be taken here and now; prepares it."""
        if not (_check.plain_thread() and _check.plain(self._dtype, x, *weights)):
            return False
        self._steps = [self._step(i, weights) for i in range(len(self._steps))]
        return None not in self._steps

    def __call__(self, x, weights):
        """A step from x, a tensor like one that was taken."""
        address, per = x.data_ptr(), len(weights) // len(self._steps)
        for i, step in enumerate(self._steps):
            if not step(address, weights[i * per : i * per + per]):  # its weights have changed
                step = self._steps[i] = self._step(i, weights)
                step(address, weights[i * per : i * per + per])
            address = step.y

    def _step(self, i, weights):
        """That of layer i, or None where its weights cannot be kept."""
        per, (states, y) = len(weights) // len(self._steps), self._memory[i]
        I = y.shape[1] if i else self._I
        return direct.in_place(self._cell, I, states, y, weights[i * per : i * per + per], self._form)
