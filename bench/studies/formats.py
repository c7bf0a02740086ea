"""Study (d): what narrower weights cost on the task of a trained model, and how much faster a step is with them.

An LSTM and a GRU learn the bytes of a text in float32, for a number of steps and not a time, so that a seed decides the
result; then each reads the same held-out text with its recurrent layer in every form, embedding and head as they are.
A step is one of a `Stream`, of one row; the formats take turns.
"""

import copy
from functools import partial

import torch
from torch.nn import functional as F

from .. import library, models, text, timing
from .training import CLIP, bits, loss_of, rate_at

CELLS = ("LSTM", "GRU")
EMBEDDING, HIDDEN = 64, 256
WINDOW, BATCH, RATE = 128, 16, 1e-2
READ, LENGTH = 64, 512  # windows of held-out text, bytes of each
UNITS = 512  # of a step that is timed
WEIGHT_FORMATS = {"float32": None, "bfloat16 weights": "bfloat16", "int8 weights": "int8"}


def trained(cell, data, steps, on_step=lambda step: None):
    """A model that has learned `data` for so many steps of BATCH windows."""
    torch.manual_seed(0)
    model = models.RecurrentModel(library.ours(), EMBEDDING, HIDDEN, cell)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate_at(step / steps, step)
        optimiser.zero_grad()
        loss_of(model, *text.windows(data, BATCH, WINDOW, generator)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        on_step(step + 1)
    return model.eval()


def _weights_in(form):
    def change(layer):
        layer.weight_format = form
        return layer

    return change


def _native(layer):
    theirs = getattr(torch.nn, type(layer).__name__)(layer.input_size, layer.hidden_size, batch_first=True)
    theirs.load_state_dict(layer.state_dict())
    return theirs


# What is made of a float32 layer. float64 shows how far float32 itself is off, torch.nn what its own bfloat16 costs.
FORMS = {
    "float32": lambda layer: layer,
    "float64": lambda layer: layer.double(),
    **{name: _weights_in(form) for name, form in WEIGHT_FORMATS.items() if form},
    "bfloat16 module": lambda layer: layer.bfloat16(),
    "bfloat16 module of torch.nn": lambda layer: _native(layer).bfloat16(),
}


@torch.no_grad()
def logits_in(form, model, tokens):
    """Logits (B,T,256), float32, of a model whose layer is in a form."""
    layer = FORMS[form](copy.deepcopy(model.layer))
    y = layer(model.embed(tokens).to(layer.weight_ih_l0.dtype))[0]
    return model.head(y.float())


def figures(logits, exact, following):
    """How good logits (B,T,256) are at naming the bytes that follow (B,T), and how far they are from `exact` ones.

    loss: bits a byte. accuracy: how often the likeliest byte follows. largest, mean: of the differences between logits.
    same: how often the likeliest byte is the one of `exact`.
    """
    loss = F.cross_entropy(logits.double().flatten(0, 1), following.flatten())
    best, difference = logits.argmax(-1), (logits.double() - exact.double()).abs()
    return {
        "loss": bits(loss.item()),
        "accuracy": (best == following).double().mean().item(),
        "largest": difference.max().item(),
        "mean": difference.mean().item(),
        "same": (best == exact.argmax(-1)).double().mean().item(),
    }


def step_rounds(cell, seconds):
    """{format of the weights: seconds a step, a figure a round}."""
    torch.manual_seed(0)
    x, calls = torch.randn(1, UNITS), {}
    for name, form in WEIGHT_FORMATS.items():
        layer = getattr(library.ours().nn, cell)(UNITS, UNITS)
        layer.weight_format = form
        calls[name] = partial(library.ours().stream(layer), x)
    return dict(zip(calls, timing.interleave(list(calls.values()), seconds), strict=True))


def run(records, data, steps, seconds, progress):
    """Trains, reads and steps as far as the records do not hold it: kind "formats", a record a cell, with figures a
    form; kind "format_steps", a record a cell, of so many seconds."""
    training, held_out, source = data
    length = min(LENGTH, len(held_out) - 1)
    tokens, following = text.windows(held_out, READ, length, torch.Generator().manual_seed(1))
    settings = {"embedding": EMBEDDING, "hidden": HIDDEN, "window": WINDOW, "batch": BATCH, "rate": RATE}
    for cell in CELLS:
        if not records.find("format_steps", cell):
            records.add("format_steps", cell, units=UNITS, seconds=step_rounds(cell, seconds))
        if records.find("formats", cell):
            continue
        task = progress.add_task(f"formats of {cell}", total=steps)
        model = trained(cell, training, steps, lambda step, task=task: progress.update(task, completed=step))
        exact = logits_in("float32", model, tokens)
        found = {form: figures(logits_in(form, model, tokens), exact, following) for form in FORMS}
        spread = exact.std().item()
        read = {"bytes_read": following.numel(), "length": length, "spread": spread, "source": source}
        records.add("formats", cell, steps=steps, forms=found, **read, **settings)
