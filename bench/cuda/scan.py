"""Whole sequences: our layers against torch's, which are cuDNN's, forward and training."""

import itertools
from dataclasses import replace

from .. import library, problems, providers
from ..cases import LAYERS, Case
from . import contest
from .row import Row

T = 256
HIDDEN = (768, 512, 1024, 256, 384, 1536)
BATCHES = (16, 1, 64)
PRECISIONS = ("bfloat16", "tf32", "ieee")
SECONDS = 0.4


def rows():
    """One layer in one direction at every size; two layers and both directions at two."""
    for (i, H), (j, B), (k, precision) in itertools.product(*map(enumerate, (HIDDEN, BATCHES, PRECISIONS))):
        for (m, cell), mode in itertools.product(enumerate(LAYERS), ("forward", "training")):
            case = Case(cell, mode, T, B, H)
            target = (i, j, k) == (0, 0, 0)
            yield row("scan", case, precision, 1 + m if target else 4 + i + 2 * j + 2 * k + 2 * m)
    for (L, both), H, B, precision in itertools.product(
        ((2, False), (1, True), (2, True)), (256, 768), (16,), PRECISIONS
    ):
        for (m, cell), mode in itertools.product(enumerate(LAYERS), ("forward", "training")):
            yield row(
                "scan", Case(cell, mode, T, B, H, L, both), precision, 6 + 2 * m + 2 * PRECISIONS.index(precision)
            )


def row(stage, case, precision, rank, **more):
    """A row whose case is in a precision: "bfloat16", or "tf32" or "ieee" for float32."""
    case = replace(case, dtype=precision if precision == "bfloat16" else "float32")
    extras = ["graph"] * more.get("graph", False) + [precision] * (case.dtype == "float32")
    key = "-".join([stage] * (stage == "step") + [case.name, *extras])
    return Row(stage, key, rank, {"case": case.as_dict(), "precision": precision, **more})


def smoke(row):
    """The same row at a size that is measured in a moment."""
    return {**row.arguments, "case": Case(**row.arguments["case"]).smoke().as_dict(), "seconds": 0}


def measure(device, case, precision, seconds=SECONDS):
    """The record of a contest."""
    case = Case(**case)
    contest.set_precision("ieee" if precision == "bfloat16" else precision)
    problem = problems.make(case, device=device.device)
    with problems.grad_mode(case):
        truth = providers.reference(problem)
        record = contest.hold(
            device, {"seqkernels": lambda: ours(problem)}, {"cuDNN": lambda: problems.call(library.native(), problem)},
            truth, "cuDNN", case.dtype, precision, seconds, sample=device.sample,
        )  # fmt: skip
    return {"case": case.as_dict(), "precision": precision, "cache": "warm", **record}


def ours(problem):
    """The call of our layer, or NotServed."""
    net, hidden = problems.loaded(library.ours().nn, problem)
    contest.refuse_unserved(net, problem.inputs[0], hidden)
    return problems.call(library.ours(), problem)
