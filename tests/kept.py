"""What autograd keeps for a backward."""

import torch


def kept_by(run, *inputs):
    """The tensors that autograd keeps for the backward of run(*inputs), each memory once, and what it returns."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        outputs = run(*inputs)
    return [t for t in kept.values() if t.numel()], outputs
