"""Providers: name -> case -> a call that is ready to be timed.

A provider says for which cases it cannot be asked (`refuses`), and builds from a problem a function without arguments
whose results `problems.results` puts in the order of `problems.call`.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import library, problems
from .cases import ATTENTION


@dataclass(frozen=True)
class Provider:
    """name and label for tables; refuses(case) -> the reason why not, or ""; build(problem, threads) -> call."""

    name: str
    label: str
    refuses: Callable
    build: Callable


def _ours(problem, threads):
    return problems.call(library.ours(), problem)


def _torch(problem, threads):
    return problems.call(library.native(), problem)


def _torch_cell(problem, threads):
    """One step of nn.LSTM done by nn.LSTMCell, which does not pack its weights at each call."""
    cell = torch.nn.LSTMCell(problem.case.H, problem.case.H, dtype=problem.inputs[0].dtype)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in problem.weights.items()})
    x, h, c = (value[0] for value in problem.inputs)

    def step():
        return cell(x, (h, c))

    step.arrange = lambda ends: [ends[0][None], ends[0][None], ends[1][None]]
    return step


def _onnxruntime(problem, threads):
    from . import onnx_export

    return onnx_export.call(problem, threads)


def _onnxruntime_refuses(case):
    if case.operation in ATTENTION or case.mode == "training" or case.dtype != "float32":
        return "ONNX Runtime is raced on float32 inference of recurrent layers only"
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _torch_cell_refuses(case):
    return "" if (case.operation, case.mode, case.L) == ("lstm", "step", 1) else "only for one step of nn.LSTM"


def _serves_all(case):
    return ""


OURS = Provider("ours", "seqkernels", _serves_all, _ours)
PEERS = {
    peer.name: peer
    for peer in (
        Provider("torch", "torch.nn / SDPA", _serves_all, _torch),
        Provider("torch-cell", "torch.nn.LSTMCell", _torch_cell_refuses, _torch_cell),
        Provider("onnxruntime", "ONNX Runtime", _onnxruntime_refuses, _onnxruntime),
    )
}


def plain_attention(q, k, v, is_causal):
    """softmax(q k^T / sqrt(D)) v, written out."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


PLAIN = library.Library("plain", torch.nn, plain_attention)


def reference(problem):
    """What torch's own modules, or attention written out, make of the problem in float64: a list of tensors."""
    return problems.results(problems.call(PLAIN, problem.to(torch.float64)))


def first_call(call, wait=lambda: None):
    """The results of the first call and its seconds, compilation included. wait: returns when all work is done."""
    start = time.perf_counter()
    results = [tensor.clone() for tensor in problems.results(call)]
    wait()
    return results, time.perf_counter() - start
