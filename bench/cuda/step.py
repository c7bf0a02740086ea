"""Steps that follow each other, one call each: through a layer, a cell or a stream, with and without a CUDA graph."""

import itertools

import torch

from .. import library, problems, providers
from ..cases import Case
from . import contest
from .scan import row

STEPS = 64
HIDDEN = (1024, 512, 2048, 256)
PRECISIONS = ("bfloat16", "tf32")
SECONDS = 0.3


def rows():
    """One LSTM layer at batch 1 by hidden size and precision, in a graph and call by call."""
    product = itertools.product(enumerate(HIDDEN), enumerate(PRECISIONS), (True, False))
    for (i, H), (k, precision), graph in product:
        yield row("step", Case("lstm", T=STEPS, B=1, H=H), precision, 3 + i + 2 * k + 2 * (not graph), graph=graph)


def smoke(row):
    """The same row at a size that is measured in a moment."""
    return {**row.arguments, "case": Case(**row.arguments["case"]).smoke().as_dict(), "seconds": 0}


def measure(device, case, precision, graph, seconds=SECONDS):
    """The record of a contest; rounds are seconds a step, bytes those of the weights."""
    case = Case(**case)
    contest.set_precision("ieee" if precision == "bfloat16" else precision)
    problem = problems.make(case, device=device.device)
    with torch.no_grad():
        y, h, c = providers.reference(problem)
        record = contest.hold(
            device, *members(device, problem, graph), [y[-1:], h, c], "cuDNN", case.dtype, precision, seconds,
            per=case.T, sample=device.sample,
        )  # fmt: skip
    size = sum(w.numel() * w.element_size() for name, w in problem.weights.items() if name.startswith("weight"))
    return {"case": case.as_dict(), "precision": precision, "graph": graph, "cache": "warm", "bytes": size, **record}


def members(device, problem, graph):
    """{name: builder} of ours and of torch's. Each call makes all steps, and returns the last y, h and c."""

    def built(make, source):
        call = make(source, problem)
        return device.graphed(call) if graph else call

    ours, torchs = library.ours(), library.native()
    return (
        {f"seqkernels.{name}": (lambda make=make: built(make, ours)) for name, make in WAYS.items()},
        {"cuDNN": lambda: built(layer, torchs), "torch.nn.LSTMCell": lambda: built(cell, torchs)},
    )


def layer(source, problem):
    """nn.LSTM called with one step at a time."""
    net, hidden = _net(source, problem)
    inputs = problem.inputs[0].unsqueeze(1).unbind(0)

    def call():
        state = hidden
        for x in inputs:
            y, state = net(x, state)
        return y, state

    return call


def cell(source, problem):
    """nn.LSTMCell with the layer's weights."""
    x, *states = problem.inputs
    net = source.nn.LSTMCell(x.shape[2], problem.case.H, dtype=x.dtype, device=x.device)
    net.load_state_dict({key.removesuffix("_l0"): value for key, value in problem.weights.items()})
    hidden, inputs = tuple(state[0] for state in states), x.unbind(0)
    if source.stream is not None:
        contest.refuse_unserved(net, inputs[0], hidden)

    def call():
        state = hidden
        for x in inputs:
            state = net(x, state)
        h, c = (part[None] for part in state)
        return h, h, c

    return call


def stream(source, problem):
    """seqkernels.Stream, set back before the first step by a copy of the states."""
    net, hidden = _net(source, problem)
    inputs = problem.inputs[0].unbind(0)
    running = source.stream(net)
    running.reset(hidden)
    running(inputs[0])

    def call():
        for mine, first in zip(running.state, hidden):
            mine.copy_(first)
        for x in inputs:
            y = running(x)
        return y[None], running.state

    return call


WAYS = {"Stream": stream, "nn.LSTM": layer, "nn.LSTMCell": cell}


def _net(source, problem):
    net, hidden = problems.loaded(source.nn, problem)
    if source.stream is not None:
        contest.refuse_unserved(net, problem.inputs[0][:1], hidden)
    return net.eval(), hidden
