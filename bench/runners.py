"""Runners carry a language model through a text, one token at a time.

`advance(tokens)` takes a runner on by tokens (T,), `step(token)` makes the logits (1,256) of one more token (1,),
`state()` lists the tensors that it must carry to go on, `formula(position)` says how many bytes these should be.
"""

import torch

from . import library, models

LONGEST = 2**14 + 64


class Runner:
    """burst: steps that are timed together."""

    burst = 4

    def back_to(self, position):
        """Forgets the steps after `position`, where a step's cost depends on it."""


class StreamRunner(Runner):
    """The LSTM model on seqkernels.Stream."""

    burst = 16

    def __init__(self, source, model):
        self.model, self.stream = model, source.stream(model.layer)

    def advance(self, tokens):
        for token in tokens[:, None]:
            self.step(token)

    def step(self, token):
        return self.model.head(self.stream(self.model.embed(token)))

    def state(self):
        return list(self.stream.state)

    def formula(self, position):
        return 2 * self.model.layer.hidden_size * 4


class LayerRunner(StreamRunner):
    """The LSTM model on an nn.LSTM that is called with T=1."""

    def __init__(self, source, model):
        self.model, self.carried = model, None

    def advance(self, tokens):
        self.carried = self.model.layer(self.model.embed(tokens[None]), self.carried)[1]

    def step(self, token):
        y, self.carried = self.model.layer(self.model.embed(token[None]), self.carried)
        return self.model.head(y[0])

    def state(self):
        return list(self.carried)


class CellRunner(StreamRunner):
    """The LSTM model on an nn.LSTMCell with the layer's weights."""

    def __init__(self, source, model):
        self.model, self.carried = model, None
        self.cell = source.nn.LSTMCell(model.layer.input_size, model.layer.hidden_size)
        self.cell.load_state_dict({key.removesuffix("_l0"): value for key, value in model.layer.state_dict().items()})

    def step(self, token):
        self.carried = self.cell(self.model.embed(token), self.carried)
        return self.model.head(self.carried[0])

    def state(self):
        return list(self.carried)


class CacheRunner(Runner):
    """The GPT model with a key/value cache: N heads, up to `longest` positions, a layer's cache (2,1,N,longest,D)."""

    def __init__(self, source, model, longest=LONGEST):
        self.model, self.position = model, 0
        size = (len(model.blocks), 2, 1, model.heads, longest, model.width // model.heads)
        self.cache = torch.empty(size)

    def advance(self, tokens):
        """Fills the cache from the start: the positions before are forgotten."""
        kept = self.model.prefill(tokens[None])[1]
        self.position = len(tokens)
        for cache, pair in zip(self.cache, kept):
            for part, values in zip(cache, pair):
                part[:, :, : self.position] = values

    def back_to(self, position):
        self.position = position

    def step(self, token):
        x, end = self.model.start(token[None], self.position), self.position + 1
        for block, (keys, values) in zip(self.model.blocks, self.cache):
            q, k, v = block.heads_of(x)
            keys[:, :, self.position] = k[:, :, 0]
            values[:, :, self.position] = v[:, :, 0]
            x = block.rest(x, block.attention(q, keys[:, :, :end], values[:, :, :end]))
        self.position = end
        return self.model.head(self.model.norm(x))[0]

    def state(self):
        return [self.cache[..., : self.position, :]]

    def formula(self, position):
        return 2 * len(self.model.blocks) * position * self.model.width * 4


class RecomputeRunner(Runner):
    """The GPT model that keeps only the tokens and computes everything again."""

    burst = 1

    def __init__(self, source, model):
        self.model = model

    def advance(self, tokens):
        self.tokens = tokens

    def step(self, token):
        return self.model(torch.cat([self.tokens, token])[None])[0, -1:]

    def state(self):
        return [self.tokens]

    def formula(self, position):
        return 8 * position


CURVES = {
    "LSTM, seqkernels.Stream": ("LSTM", "ours", StreamRunner),
    "LSTM, torch.nn.LSTM": ("LSTM", "torch", LayerRunner),
    "LSTM, torch.nn.LSTMCell": ("LSTM", "torch", CellRunner),
    "GPT with cache, seqkernels": ("GPT", "ours", CacheRunner),
    "GPT with cache, torch": ("GPT", "torch", CacheRunner),
    "GPT recomputing, seqkernels": ("GPT", "ours", RecomputeRunner),
    "GPT recomputing, torch": ("GPT", "torch", RecomputeRunner),
}


def runners():
    """Name -> runner. The weights are those of the training race before training; time does not depend on them."""
    sources = {"ours": library.ours(), "torch": library.native()}
    made = {}
    for name, (kind, source, runner) in CURVES.items():
        torch.manual_seed(0)
        gpt = models.GPT(sources[source])
        sizes = models.matched_sizes(models.parameters(gpt))
        model = gpt if kind == "GPT" else models.RecurrentModel(sources[source], *sizes)
        made[name] = runner(sources[source], model.eval())
    return made


def generate_lstm(source, model, prompt, count, temperature):
    """`count` bytes after a prompt (T,), from the LSTM model: constant time and state a byte."""
    return _generate(StreamRunner(source, model), prompt, count, temperature)


def generate_gpt(source, model, prompt, count, temperature):
    """`count` bytes after a prompt (T,), from the GPT model with its cache."""
    return _generate(CacheRunner(source, model, len(prompt) + count), prompt, count, temperature)


@torch.no_grad()
def _generate(runner, prompt, count, temperature):
    runner.advance(prompt[:-1])
    token, written = prompt[-1:], []
    for _ in range(count):
        logits = runner.step(token)
        token = torch.multinomial((logits[0] / temperature).softmax(0), 1)
        written.append(token.item())
    return written
