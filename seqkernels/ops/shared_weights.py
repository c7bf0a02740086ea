"""Weights that the steps of a loop share, whose gradients are gathered.

A step alone returns its weights' gradients, and autograd adds them up: for a cell of an LSTM with 256 units 2 MB that
each step allocates and writes, and autograd reads and adds. Steps of one graph that share their weights hang on one
node that stands between them and the weights: each leaves its part with what gathers them in this backward pass, and
the node, which runs after the last of them, hands on the sums.
"""

import weakref
from operator import is_

import torch


class SharedWeights:
    """What such steps hold as long as their graph lives, and with it what a pass that failed has gathered.

    kept: the `packed.Kept` of the weights; token: an empty tensor, the steps' input in the place of the weights.
    """

    def __init__(self, kept, weights):
        self.kept, self._weights, self._passes = kept, weights, {}
        self.token = _Shared.apply(self._passes, *weights)

    @classmethod
    def of(cls, kept, weights):
        """Those of the steps that are alive, where they met these very tensors and the same contents, or new ones.
        kept: of the weights."""
        shared = None if kept.shared is None else kept.shared()
        if shared is None or not all(map(is_, weights, shared._weights)):  # others may show the same memory
            shared = cls(kept, weights)
            kept.shared = weakref.ref(shared)
        return shared

    def wanted(self):
        """Whether the backward pass that runs goes on to the weights."""
        return torch._C._will_engine_execute_node(self.token.grad_fn)

    def gradients(self, new):
        """What gathers the weights' gradients in the backward pass that runs: new() at its first step. In the end its
        `finish()` gives them."""
        task = torch._C._current_graph_task_id()
        gathered = self._passes.get(task)
        if gathered is None:
            gathered = self._passes[task] = new()
        return gathered


class _Shared(torch.autograd.Function):
    """The token of some weights. It has no gradient."""

    @staticmethod
    def forward(ctx, passes, *weights):
        ctx.passes, ctx.nothing = passes, [None] * len(weights)
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(0)

    @staticmethod
    def backward(ctx, _):
        gathered = ctx.passes.pop(torch._C._current_graph_task_id(), None)
        # Where the gradient is recorded in its turn, every step has returned the weights' itself.
        return None, *(ctx.nothing if gathered is None else gathered.finish())
