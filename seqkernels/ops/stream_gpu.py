"""The steps of a stream on a GPU: one CUDA graph of all layers, replayed.

A replay reads and writes the memory that was recorded, so a change of the weights in place is seen; weights that lie
elsewhere are recorded anew. In Triton's interpreter, on CPU tensors, what is recorded is the run itself.
"""

from functools import partial

import torch

from .. import _check
from . import step_gpu

_POINTER = torch.Tensor.data_ptr


def run(cell, x, states, ys, weights):
    """One step of all layers from x (B, I): the outputs into ys (L, B, H); moves on the states, h and, if any, c, each
    (L, B, H), in place. weights: those of all layers, as many of each."""
    h, c = (*states, None)[:2]
    per = len(weights) // len(h)
    for i, y in enumerate(ys):
        c_i = None if c is None else c[i]
        step_gpu.write(cell, ys[i - 1] if i else x, h[i], c_i, weights[i * per : i * per + per], y, c_i)
    h.copy_(ys)  # programs of a layer read its h while others write its y


class Layers:
    """The layers of a stream over its memory, as `run` has it: a call is a step.

    The first step with weights where they are runs as it is, which compiles the kernels; the second is recorded.
    """

    def __init__(self, cell, x, states, ys, form=None):
        """x: an input (B, I) or (I,); states and ys as `run` takes them. form: of no effect, weights are read as they
        are."""
        self._cell, self._states, self._ys = cell, states, ys
        self._x = x.new_empty(ys.shape[1], x.shape[-1])
        self._pointers = self._replay = None

    def takes(self, x, weights):
        """Whether a step from plain tensors like these can be taken here and now. Raises as `_check.layer_weights`."""
        kind = "CUDA" if x.is_cuda else "CPU"
        if (
            not _check.bare_thread()
            or not _check.plain(self._ys.dtype, x, *weights, kind=kind)
            or x.device != self._ys.device
            or not all(w.is_contiguous() for w in weights)
        ):
            return False
        per = len(weights) // len(self._ys)
        for i, y in enumerate(self._ys):
            _check.layer_weights(self._cell, y.shape[1] if i else x.shape[-1], y, weights[i * per : i * per + per])
        return True

    def __call__(self, x, weights):
        """A step from x, a tensor like one that was taken."""
        pointers, step = list(map(_POINTER, weights)), partial(self._run, weights)
        with torch.no_grad():
            self._x.copy_(x)
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                step()  # into the caller's graph
            elif pointers != self._pointers:
                _check.stored(*((f"weights[{i}]", w) for i, w in enumerate(weights)))
                self._pointers, self._replay = pointers, None
                warm_up(step, x.device)
            else:
                if self._replay is None:
                    self._replay = record(step, x.device)
                self._replay()

    def _run(self, weights):
        run(self._cell, self._x, self._states, self._ys, weights)


def warm_up(step, device):
    """Runs a step before it is recorded: on a side stream, as torch asks."""
    if device.type != "cuda":
        return step()
    side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        step()
    return current.wait_stream(side)


def record(step, device):
    """A function that repeats the step on the memory that it uses now; the step itself is not taken."""
    if device.type != "cuda":
        return step
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        step()
    return graph.replay
