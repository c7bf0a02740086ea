"""One more token after T: a recurrent layer's step and attention over a cache, each in a CUDA graph."""

import torch

from .. import problems, providers
from ..cases import Case
from . import attention, contest, step
from .row import Row

POSITIONS = tuple(2**k for k in range(8, 19))
HIDDEN = attention.HEADS * attention.SIZE
SECONDS = 0.2


def rows():
    """By position; both have the same width."""
    for i, T in enumerate(reversed(POSITIONS)):
        yield Row(
            "curves", f"token-{T}", 5 + i % 2 * 3, {"T": T, "H": HIDDEN, "N": attention.HEADS, "D": attention.SIZE}
        )


def smoke(row):
    """The same row at a size that is measured in a moment."""
    return {"T": row.arguments["T"] // 64, "H": 9, "N": 2, "D": 8, "steps": 4, "seconds": 0, "dtype": "float32"}


def measure(device, T, H, N, D, steps=step.STEPS, seconds=SECONDS, dtype="bfloat16"):
    """{"recurrence", "attention"}: a contest's record each, whose rounds are seconds a token, and bytes of state."""
    precision = dtype if dtype == "bfloat16" else "ieee"
    contest.set_precision("ieee")
    layer = problems.make(Case("lstm", T=steps, B=1, H=H, dtype=dtype), device=device.device)
    cache = problems.make(Case("decode", T=T, B=1, N=N, D=D, dtype=dtype), device=device.device)
    with torch.no_grad():
        y, h, c = providers.reference(layer)
        recurrence = contest.hold(
            device, *step.members(device, layer, True), [y[-1:], h, c], "cuDNN", dtype, precision, seconds,
            per=steps, sample=device.sample,
        )  # fmt: skip
        members = [
            {name: (lambda make=make: device.graphed(make(), steps)) for name, make in group.items()}
            for group in attention.members(cache)
        ]
        truth = providers.reference(cache)
        token = contest.hold(device, *members, truth, "default", dtype, precision, seconds, sample=device.sample)
    state = sum(x.numel() * x.element_size() for x in layer.inputs[1:])
    recurrence, token = {"bytes": state, **recurrence}, {"bytes": attention.size(cache), **token}
    statuses = {recurrence["status"], token["status"]} - {"ok"}
    return {"status": min(statuses, default="ok"), "T": T, "recurrence": recurrence, "attention": token}
