"""The two language models over bytes, with the same number of parameters."""

import math

import torch
from torch import nn

BYTES = 256
WIDTH, LAYERS, HEADS = 128, 3, 4
LONGEST = 2**15


class RecurrentModel(nn.Module):
    """Embedding, one recurrent layer, linear head.

    library: where the layer comes from. embedding: I. hidden: H. cell: the layer's class.
    """

    def __init__(self, library, embedding, hidden, cell="LSTM"):
        super().__init__()
        self.embed = nn.Embedding(BYTES, embedding)
        self.layer = getattr(library.nn, cell)(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, BYTES)

    def forward(self, tokens):
        """tokens (B,T) int64 -> logits (B,T,256)."""
        return self.head(self.layer(self.embed(tokens))[0])


class Block(nn.Module):
    """Causal attention and an MLP, each behind a layer norm and beside a residual path."""

    def __init__(self, attention, width, heads):
        super().__init__()
        self.attention, self.heads = attention, heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def heads_of(self, x):
        """x (B,T,width) -> q, k, v (B,N,T,D)."""
        B, T, width = x.shape
        parts = self.qkv(self.norm_attention(x)).view(B, T, 3, self.heads, width // self.heads)
        return parts.permute(2, 0, 3, 1, 4).unbind(0)

    def rest(self, x, attended):
        """The residual stream x (B,T,width) after attention's output (B,N,T,D) and the MLP."""
        x = x + self.project(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm_mlp(x))

    def forward(self, x):
        """x (B,T,width) -> x, and the keys and values (B,N,T,D) that a cache keeps."""
        q, k, v = self.heads_of(x)
        return self.rest(x, self.attention(q, k, v, is_causal=True)), (k, v)


class GPT(nn.Module):
    """Embedding plus sinusoidal positions, attention and MLP blocks, linear head.

    library: where attention comes from.
    """

    def __init__(self, library, width=WIDTH, layers=LAYERS, heads=HEADS):
        super().__init__()
        self.embed = nn.Embedding(BYTES, width)
        self.blocks = nn.ModuleList(Block(library.attention, width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)
        self.width, self.heads = width, heads
        self.register_buffer("positions", sinusoid(LONGEST, width), persistent=False)

    def start(self, tokens, position=0):
        """tokens (B,T) -> embeddings with their positions, from `position` on."""
        return self.embed(tokens) + self.positions[position : position + tokens.shape[1]]

    def forward(self, tokens):
        """tokens (B,T) int64 -> logits (B,T,256)."""
        return self.prefill(tokens)[0]

    def prefill(self, tokens):
        """Logits (B,T,256), and per layer the keys and values (B,N,T,D)."""
        x, kept = self.start(tokens), []
        for block in self.blocks:
            x, pair = block(x)
            kept.append(pair)
        return self.head(self.norm(x)), kept


def sinusoid(T, width):
    """Sines and cosines of T positions: (T,width)."""
    places = torch.arange(T, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.cat([(places * rates).sin(), (places * rates).cos()], dim=1)


def parameters(model):
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def matched_sizes(target, multiple=32):
    """(embedding, hidden) of the LSTM model whose parameters come nearest to `target`: hidden a multiple of 32."""

    def count(embedding, hidden):
        return BYTES * embedding + 4 * hidden * (embedding + hidden + 2) + BYTES * (hidden + 1)

    def nearest(hidden):
        embedding = round((target - count(0, hidden)) / (BYTES + 4 * hidden))
        return max(embedding, 1), hidden

    choices = [nearest(hidden) for hidden in range(multiple, 4096, multiple)]
    near = [choice for choice in choices if abs(count(*choice) - target) <= 0.01 * target]
    return min(near, key=lambda choice: abs(math.log(choice[0] * 2 / choice[1])))
