"""The oracle: every operation in plain torch operators, on any device, in any floating dtype; autograd works through
it.

Letters: `T` time, `B` batch, `I` input size, `H` hidden size, `G` gates, `D` directions (head size in attention),
`N` heads. The cells' mathematics is `seqkernels.kernels.cells`, the same source that the kernels run.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seqkernels.kernels.cells import CELLS

from . import dropout

_PRIMITIVES = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "dsigmoid": lambda y: y * (1 - y),
    "dtanh": lambda y: 1 - y * y,
    "drelu": lambda y: (y > 0).to(y.dtype),
}


class ScanOutput(NamedTuple):
    """What a scan returns. `c_n` and `c` are None for a cell without c; `c` and `gates` only come on request."""

    y: Tensor  # (T, B, D*H), or (B, T, D*H) with batch_first
    h_n: Tensor  # (D, B, H)
    c_n: Tensor | None = None  # (D, B, H)
    c: Tensor | None = None  # (D, T, B, H)
    gates: Tensor | None = None  # (D, T, saved, B, H): the values the cell saves for its backward


@cache
def _forward(cell):
    return CELLS[cell].bind(**_PRIMITIVES)[0]


def step(cell, x, h, c, weights):
    """One time step of one direction.

    x (B, I); h (B, H); c (B, H) for "lstm", else None; weights: w_ih (G*H, I), w_hh (G*H, H)[, b_ih (G*H), b_hh (G*H)].
    Returns (h', c'), each (B, H), c' None where the cell has no c.
    """
    w_ih, w_hh, b_ih, b_hh = _four(weights)
    states, _ = _advance(cell, F.linear(x, w_ih, b_ih), h, c, w_hh, b_hh)
    return states if len(states) == 2 else (states[0], None)


def _four(weights):
    return (*weights, None, None) if len(weights) == 2 else tuple(weights)


def _advance(cell, projected, h, c, w_hh, b_hh):
    gates = CELLS[cell].gates
    states = (h,) if c is None else (h, c)
    return _forward(cell)(projected.chunk(gates, -1), F.linear(h, w_hh, b_hh).chunk(gates, -1), states)


def _column(mask, B):
    return mask.reshape(B, 1)


def _direction(cell, x, h, c, weights, reverse, lengths, reset, reset_state):
    """One direction over x (T, B, I): per step the h, c and saved values, in time order; then the last states."""
    T, B = x.shape[:2]
    w_ih, w_hh, b_ih, b_hh = _four(weights)
    projected = F.linear(x, w_ih, b_ih)
    fresh = (torch.zeros_like(h), torch.zeros_like(h)) if reset_state is None else reset_state
    ys, cs, saves = [None] * T, [None] * T, [None] * T
    for t in range(T - 1, -1, -1) if reverse else range(T):
        if reset is not None:
            at = _column(reset[t], B)
            h = torch.where(at, fresh[0], h)
            c = None if c is None else torch.where(at, fresh[1], c)
        states, saved = _advance(cell, projected[t], h, c, w_hh, b_hh)
        y = states[0]
        if lengths is None:
            h, c = states if len(states) == 2 else (states[0], None)
        else:
            live = _column(t < lengths, B)
            y = torch.where(live, y, torch.zeros_like(y))
            h = torch.where(live, states[0], h)
            c = None if c is None else torch.where(live, states[1], c)
            saved = [torch.where(live, s, torch.zeros_like(s)) for s in saved]
        ys[t], cs[t], saves[t] = y, c, saved
    return ys, cs, saves, h, c


def scan(
    cell,
    x,
    h_0,
    c_0,
    weights,
    batch_first=False,
    lengths=None,
    reset=None,
    reset_state=None,
    return_states=False,
):
    """A layer of a recurrent network over a whole sequence; D = len(h_0) directions, the second one in reverse.

    cell "rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm" or "gru"; x (T, B, I), or (B, T, I) with batch_first;
    h_0 (D, B, H); c_0 (D, B, H) for "lstm", else None; weights: D times w_ih (G*H, I), w_hh (G*H, H)[, b_ih, b_hh
    (G*H)].

    lengths (B,) integers from 0 to T: row b ends after lengths[b] steps. Its outputs past the end are zero, its final
    states are those at its last valid step (the initial states where the length is 0), and the reverse direction
    starts there.

    reset (T, B) bool, (B, T) with batch_first: where it is true, the row's state is replaced *before* that step: by
    zero, or by reset_state = (h, c), each (D, B, H) (c None where the cell has no c). It is not h_0 that comes back,
    which is often the state carried over from an earlier piece of the sequence. The reverse direction resets before
    the same steps, in its own order. A row that has ended, or not begun, is not reset.

    Returns ScanOutput(y, h_n, c_n, c, gates); c and gates are filled when return_states is true;
    past a row's end c is its last one, and the gates are zero.
    """
    if batch_first:
        x = x.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1)
    if lengths is not None:  # or NaN past an end would be in the weights' gradients, as 0 * NaN
        past = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths
        x = x.masked_fill(past.unsqueeze(-1), 0)
        reset = None if reset is None else reset & ~past
    per = len(weights) // h_0.shape[0]
    outs = []
    for d in range(h_0.shape[0]):
        c = None if c_0 is None else c_0[d]
        fresh = None if reset_state is None else tuple(None if s is None else s[d] for s in reset_state)
        own = weights[d * per : (d + 1) * per]
        outs.append(_direction(cell, x, h_0[d], c, own, d == 1, lengths, reset, fresh))
    y = torch.cat([torch.stack(ys) for ys, *_ in outs], -1)
    h_n = torch.stack([h for *_, h, _ in outs])
    c_n = None if c_0 is None else torch.stack([c for *_, c in outs])
    if batch_first:
        y = y.transpose(0, 1).contiguous()
    if not return_states:
        return ScanOutput(y, h_n, c_n)
    all_c = None if c_0 is None else torch.stack([torch.stack(cs) for _, cs, *_ in outs])
    gates = None
    if CELLS[cell].saved:
        gates = torch.stack([torch.stack([torch.stack(saved) for saved in saves]) for _, _, saves, *_ in outs])
    return ScanOutput(y, h_n, c_n, all_c, gates)


def attention_weights(query, key, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    """softmax(Q K^T * scale + mask): (..., N, T, S). A query to which every key is masked gets weights of zero."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *, seed=None
):
    """softmax(Q K^T * scale + mask) V with torch's signature and meaning, the T x S matrix written out.

    query (..., N, T, D), key (..., N, S, D), value (..., N, S, E); attn_mask bool (true: may be attended) or floating
    (added), broadcastable to (..., N, T, S); scale defaults to 1/sqrt(D). seed (1,), int64, says what dropout drops;
    by default it is drawn. Returns (..., N, T, E).
    """
    weights = attention_weights(query, key, attn_mask, is_causal, scale, enable_gqa)
    if dropout_p:
        seed = dropout.draw_seed(query.device) if seed is None else seed
        weights = weights * dropout.multiplier(dropout_p, seed, weights.shape, weights.dtype)
    if enable_gqa:
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return weights @ value


def attention_gradients(dout, query, key, value, attn_mask, is_causal, scale, dropout_p=0.0, seed=None):
    """Gradients of query (B, N, T, D), key (B, M, S, D), value (B, M, S, E) and the scores (B, N, T, S), in formulas.

    dout (B, N, T, E) is the gradient of what `scaled_dot_product_attention` returns, with enable_gqa where N is not M.
    """
    group, M = query.shape[1] // key.shape[1], key.shape[1]
    weights = attention_weights(query, key, attn_mask, is_causal, scale, enable_gqa=True)
    kept = dropout.multiplier(dropout_p, seed, weights.shape, weights.dtype) if dropout_p else 1.0
    dweights = dout @ value.repeat_interleave(group, 1).mT * kept
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
    dproducts = dscores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    dquery = dproducts @ key.repeat_interleave(group, 1)
    dkey, dvalue = dproducts.mT @ query, (weights * kept).mT @ dout
    return dquery, *(x.unflatten(1, (M, group)).sum(2) for x in (dkey, dvalue)), dscores
