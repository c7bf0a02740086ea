"""The oracle itself: pinned to torch.nn in float64, and its lengths= and reset= to what they mean, row by row."""

import math

import pytest
import torch
from seqkernels.kernels.cells import CELLS
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqkernels import reference

T, B, I, H = 5, 3, 4, 6
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN, "rnn_relu": torch.nn.RNN}


def layer(cell, D=1, bias=True):
    """x (T, B, I), h_0 and c_0 (D, B, H), weights, all float64; c_0 None without c."""
    rows = CELLS[cell].gates * H
    shapes = [(rows, I), (rows, H), *([(rows,)] * 2 if bias else [])] * D
    weights = [torch.randn(s, dtype=torch.float64) / 2 for s in shapes]
    x, h, c = (torch.randn(s, dtype=torch.float64) for s in ((T, B, I), (D, B, H), (D, B, H)))
    return x, h, c if CELLS[cell].states == 2 else None, weights


def by_torch(cell, x, h, c, weights, D, bias=True):
    options = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    module = TORCH[cell](I, H, bidirectional=D == 2, bias=bias, dtype=torch.float64, **options)
    with torch.no_grad():
        for target, source in zip(module._flat_weights, weights):
            target.copy_(source)
        y, hx = module(x, h if c is None else (h, c))
    return (y, hx, None) if c is None else (y, *hx)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell", TORCH)
def test_scan_is_torchs(cell, D, bias):
    x, h, c, weights = layer(cell, D, bias)
    out = reference.scan(cell, x, h, c, weights)
    torch.testing.assert_close(out[:3], by_torch(cell, x, h, c, weights, D, bias), rtol=1e-13, atol=1e-13)
    transposed = reference.scan(cell, x.transpose(0, 1), h, c, weights, batch_first=True)
    assert torch.equal(transposed.y, out.y.transpose(0, 1))


def test_sigmoid_scan_is_its_equation():
    x, h, _, (w_ih, w_hh, b_ih, b_hh) = layer("rnn_sigmoid")
    state = h[0]
    for t in range(T):
        state = torch.sigmoid(x[t] @ w_ih.T + b_ih + state @ w_hh.T + b_hh)
    torch.testing.assert_close(reference.scan("rnn_sigmoid", x, h, None, [w_ih, w_hh, b_ih, b_hh]).h_n[0], state)


@pytest.mark.parametrize("cell", CELLS)
def test_step_is_a_scan_of_one_step(cell):
    x, h, c, weights = layer(cell)
    stepped = reference.step(cell, x[0], h[0], None if c is None else c[0], weights)
    scanned = reference.scan(cell, x[:1], h, c, weights)
    torch.testing.assert_close(stepped[0], scanned.h_n[0])
    assert (stepped[1] is None) == (c is None)


@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_each_row_by_itself(cell, D):
    x, h, c, weights = layer(cell, D)
    lengths = torch.tensor([T, 0, 2])
    out = reference.scan(cell, x, h, c, weights, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        row = slice(b, b + 1)
        assert not out.y[n:, b].any()
        c_row = None if c is None else c[:, row]
        if n == 0:
            assert torch.equal(out.h_n[:, b], h[:, b])
            continue
        alone = reference.scan(cell, x[:n, row], h[:, row], c_row, weights)
        torch.testing.assert_close(out.y[:n, row], alone.y)
        torch.testing.assert_close(out.h_n[:, row], alone.h_n)
        if c is not None:
            torch.testing.assert_close(out.c_n[:, row], alone.c_n)


def test_what_is_past_a_rows_end_counts_for_nothing():
    x, h, c, weights = layer("lstm", 2)
    lengths, reset = torch.tensor([T, 0, 2]), torch.zeros(T, 3, dtype=torch.bool)
    runs = []
    for idle in (False, True):
        x = x.clone()
        if idle:
            reset[0, 1] = reset[2:, 2] = True
            x[0, 1], x[3, 2] = math.nan, math.inf
        leaves = [t.detach().requires_grad_() for t in (h, c, *weights)]
        out = reference.scan("lstm", x, *leaves[:2], leaves[2:], lengths=lengths, reset=reset)[:3]
        runs.append((*out, *torch.autograd.grad(sum(o.sum() for o in out), leaves)))
    for plain, other in zip(*runs, strict=True):
        torch.testing.assert_close(other, plain)


def test_lengths_agree_with_packed_sequences():
    x, h, c, weights = layer("lstm", 2)
    lengths = torch.tensor([5, 3, 1])
    module = torch.nn.LSTM(I, H, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for target, source in zip(module._flat_weights, weights):
            target.copy_(source)
        y, (h_n, c_n) = module(pack_padded_sequence(x, lengths), (h, c))
    out = reference.scan("lstm", x, h, c, weights, lengths=lengths)
    torch.testing.assert_close(out[:3], (pad_packed_sequence(y)[0], h_n, c_n))


@pytest.mark.parametrize("given", (False, True))
@pytest.mark.parametrize("cell", ("lstm", "gru"))
def test_reset_starts_the_row_again(cell, given):
    """Row 1 is reset before step 3: from there on it is a sequence of its own, in reverse up to there likewise."""
    x, h, c, weights = layer(cell, 2)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3, 1] = True
    fresh = [torch.randn_like(h) if given else torch.zeros_like(h) for _ in range(2)]
    state = (fresh[0], None if c is None else fresh[1])
    out = reference.scan(cell, x, h, c, weights, reset=reset, reset_state=state if given else None)
    plain = reference.scan(cell, x, h, c, weights)
    again = reference.scan(cell, x[3:], state[0], state[1], weights)
    back = reference.scan(cell, x[:4], state[0], state[1], weights)
    torch.testing.assert_close(out.y[3:, 1, :H], again.y[:, 1, :H])
    torch.testing.assert_close(out.y[:4, 1, H:], back.y[:, 1, H:])
    torch.testing.assert_close(out.y[:3, :, :H], plain.y[:3, :, :H])
    torch.testing.assert_close(out.y[:, [0, 2]], plain.y[:, [0, 2]])
    turned = reference.scan(cell, x.transpose(0, 1), h, c, weights, True, reset=reset.T, reset_state=state)
    torch.testing.assert_close(turned.y.transpose(0, 1), out.y)


@pytest.mark.parametrize("cell", CELLS)
def test_states_on_request(cell):
    x, h, c, weights = layer(cell, 2)
    out = reference.scan(cell, x, h, c, weights, return_states=True)
    assert (out.c is None) == (c is None)
    if c is not None:
        torch.testing.assert_close(out.c[0, -1], out.c_n[0])
        torch.testing.assert_close(out.c[1, 0], out.c_n[1])
    if CELLS[cell].saved:
        assert out.gates.shape == (2, T, CELLS[cell].saved, B, H)


@pytest.mark.parametrize("options", ({}, {"lengths": torch.tensor([2, 0])}, {"reset": torch.rand(3, 2) < 0.5}))
def test_gradients_flow(options):
    rows = 4 * 2
    shapes = [(3, 2, 2), (1, 2, 2), (1, 2, 2), (rows, 2), (rows, 2)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    torch.autograd.gradcheck(lambda x, h, c, *w: reference.scan("lstm", x, h, c, w, **options)[:3], tensors)


@pytest.mark.parametrize("causal, mask", ((False, None), (True, None), (False, "bool"), (False, "float")))
def test_attention_is_torchs(causal, mask):
    q, k, v = (torch.randn(s, dtype=torch.float64) for s in ((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3)))
    m = None if mask is None else torch.rand(2, 1, 5, 7) < 0.5 if mask == "bool" else torch.randn(5, 7).double()
    if mask == "bool":
        m[0, 0, 0] = False
    ours = reference.scaled_dot_product_attention(q, k, v, m, is_causal=causal, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(
        ours, F.scaled_dot_product_attention(q, k, v, m, is_causal=causal, scale=0.3, enable_gqa=True)
    )


def test_attention_drops_out():
    q = torch.randn(1, 1, 40, 8, dtype=torch.float64)
    dropped = reference.scaled_dot_product_attention(q, q, torch.ones_like(q), dropout_p=0.5)
    assert dropped.std() > 0.05
    assert abs(dropped.mean() - 1) < 0.3
