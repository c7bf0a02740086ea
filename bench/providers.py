"""Providers: name -> case -> a call that is ready to be timed.

A provider says for which cases it cannot be asked (`refuses`), and builds from a problem a function without arguments
whose results `problems.results` puts in the order of `problems.call`.
"""

import importlib.util
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch

from . import library, problems
from .cases import ATTENTION, LAYERS, MODULES, SUBSETS


@dataclass(frozen=True)
class Provider:
    """name and label for tables; refuses(case) -> the reason why not, or ""; build(problem, threads) -> call; subset:
    the smallest amount of cases.SUBSETS that it races in."""

    name: str
    label: str
    refuses: Callable
    build: Callable
    subset: str = "quick"

    def races(self, subset):
        """Whether it takes part in a subset."""
        return SUBSETS.index(self.subset) <= SUBSETS.index(subset)


def _ours(problem, threads):
    return problems.call(library.ours(), problem)


def _torch(problem, threads):
    return problems.call(library.native(), problem)


def _torch_cell(problem, threads):
    """One step of a layer done by torch's cell: nn.LSTM packs its weights at each call, nn.LSTMCell does not."""
    case = problem.case
    cell = getattr(torch.nn, MODULES[f"{case.operation}_cell"])(case.H, case.H, dtype=problem.inputs[0].dtype)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in problem.weights.items()})
    x, *states = (value[0] for value in problem.inputs)
    step = partial(cell, x, tuple(states) if len(states) > 1 else states[0])

    def run():
        return step()

    run.arrange = lambda ends: [end[None] for end in (problems.flat(ends)[0], *problems.flat(ends))]
    return run


def _torch_cell_refuses(case):
    layer = case.operation in LAYERS and (case.mode, case.L, case.bidirectional) == ("step", 1, False)
    return "" if layer else "only for one step of a layer"


def _compiled(problem, threads):
    """torch's cells and attention under torch.compile, which Inductor tunes at the first call."""
    options = {"fullgraph": True, "mode": "max-autotune"}

    def module(base, *sizes, **given):
        def forward(self, x, hx):  # Dynamo compiles no frame of torch.nn's own, but what another frame calls there
            return base.forward(self, x, hx)

        net = type(base.__name__, (base,), {"forward": forward})(*sizes, **given)
        net.compile(**options)
        return net

    kinds = SimpleNamespace(**{kind: partial(module, getattr(torch.nn, kind)) for kind in MODULES.values()})
    attention = torch.compile(torch.nn.functional.scaled_dot_product_attention, **options)
    return problems.call(library.Library("compiled", kinds, attention), problem)


def _compiled_refuses(case):
    if case.operation in LAYERS:
        return "torch.compile unrolls a recurrence"
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    return "" if compiler else "not installed: a C++ compiler"


def _onnxruntime(problem, threads):
    from . import onnx_export

    return onnx_export.onnxruntime_call(problem, threads)


def _openvino(problem, threads):
    from . import onnx_export

    return onnx_export.openvino_call(problem, threads)


def _runtime_refuses(*packages):
    """refuses of a peer that runs an ONNX model, and needs these packages."""

    def refuses(case):
        if case.operation in ATTENTION or case.mode == "training" or case.dtype != "float32" or case.ragged:
            return "raced on float32 inference of recurrent layers, of rows of one length, only"
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""

    return refuses


def _serves_all(case):
    return ""


OURS = Provider("ours", "seqkernels", _serves_all, _ours)
PEERS = {
    peer.name: peer
    for peer in (
        Provider("torch", "torch.nn / SDPA", _serves_all, _torch),
        Provider("torch-cell", "torch.nn's cell", _torch_cell_refuses, _torch_cell),
        Provider("compiled", "torch.compile", _compiled_refuses, _compiled, "full"),
        Provider("onnxruntime", "ONNX Runtime", _runtime_refuses("onnx", "onnxruntime"), _onnxruntime),
        Provider("openvino", "OpenVINO", _runtime_refuses("onnx", "openvino"), _openvino, "default"),
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
