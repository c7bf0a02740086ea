"""Study (a): an LSTM and a GPT with as many parameters learn the same text for the same time."""

import math
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .. import library, models, text
from ..runners import generate_gpt, generate_lstm

WINDOW, BATCH, HELD_OUT_WINDOWS = 128, 16, 32
CLIP, WARMUP_STEPS = 1.0, 20
RATES = {"LSTM": 1e-2, "GPT": 4e-3}  # of those tried, the best of each model after 350 steps
POINTS = 25
PROMPT, SAMPLE, TEMPERATURE = 48, 400, 0.8


@dataclass
class Clock:
    """Counts the seconds spent within `with clock:` only."""

    seconds: float = 0.0

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *error):
        self.seconds += time.perf_counter() - self.start


def build():
    """The two models, ready to train, and how many parameters each has. Their sizes are matched within 1%."""
    torch.manual_seed(0)
    gpt = models.GPT(library.ours())
    lstm = models.RecurrentModel(library.ours(), *models.matched_sizes(models.parameters(gpt)))
    return {"LSTM": lstm, "GPT": gpt}


def loss_of(model, tokens, following):
    """Mean cross entropy in nats of the tokens that follow."""
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def bits(nats):
    """Nats a byte -> bits a byte."""
    return nats / math.log(2)


@torch.no_grad()
def held_out_loss(model, data):
    """Bits a byte over the same held-out windows each time."""
    tokens, following = text.windows(data, HELD_OUT_WINDOWS, WINDOW, torch.Generator().manual_seed(1))
    model.eval()
    loss = loss_of(model, tokens, following)
    model.train()
    return bits(loss.item())


def rate_at(fraction, step):
    """Factor on the learning rate: a short warm-up by steps, then a cosine over the time, down to a tenth."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.1 + 0.45 * (1 + math.cos(math.pi * min(fraction, 1.0))))


def train(name, model, training, held_out, seconds):
    """Trains for `seconds` of training time and yields a point {"seconds", "steps", "train", "held_out"} now and then.

    Evaluation and the first call, which compiles kernels, are not on the clock. Losses are in bits a byte.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=0.01)
    generator, clock = torch.Generator().manual_seed(0), Clock()
    loss_of(model, *text.windows(training, BATCH, WINDOW, generator)).backward()
    steps, recent = 0, []
    yield {"seconds": 0.0, "steps": 0, "train": None, "held_out": held_out_loss(model, held_out)}
    for point in range(1, POINTS + 1):
        while clock.seconds < seconds * point / POINTS:
            with clock:
                for group in optimiser.param_groups:
                    group["lr"] = RATES[name] * rate_at(clock.seconds / seconds, steps)
                optimiser.zero_grad()
                loss = loss_of(model, *text.windows(training, BATCH, WINDOW, generator))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimiser.step()
                recent.append(loss.item())
            steps += 1
        if recent:
            mean = bits(sum(recent) / len(recent))
            yield {"seconds": clock.seconds, "steps": steps, "train": mean, "held_out": held_out_loss(model, held_out)}
        recent = []


def sample(name, model, data):
    """A prompt from the held-out text and what the model writes after it."""
    prompt = data[:PROMPT].long()
    generate = {"LSTM": generate_lstm, "GPT": generate_gpt}[name]
    torch.manual_seed(0)
    written = generate(library.ours(), model.eval(), prompt, SAMPLE, TEMPERATURE)
    return {"prompt": _decode(prompt.tolist()), "text": _decode(written)}


def _decode(values):
    return bytes(values).decode("utf-8", errors="replace")


def run(records, data, seconds, progress):
    """Trains what the records do not hold yet: kind "training_point" as they come, "training" at a model's end."""
    training, held_out, source = data
    for name, model in build().items():
        if records.find("training", name):
            continue
        records.drop("training_point", name)
        task = progress.add_task(f"training {name}", total=seconds)
        for point in train(name, model, training, held_out, seconds):
            records.add("training_point", name, **point)
            progress.update(task, completed=point["seconds"])
        settings = {"window": WINDOW, "batch": BATCH, "rate": RATES[name], "source": source}
        records.add(
            "training",
            name,
            parameters=models.parameters(model),
            budget=seconds,
            bytes_read=point["steps"] * BATCH * WINDOW,
            sample=sample(name, model, held_out),
            **point,
            **settings,
        )
