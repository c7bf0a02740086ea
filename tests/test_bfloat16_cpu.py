"""bfloat16 on a CPU, stored in two bytes and computed in float32, with the CPU's own instruction and without."""

import pytest
import torch
import without_dots
from agreement import assert_agree
from cell_cases import ALIKE
from scan_problem import Problem
from seqkernels.kernels.cells import CELLS

from seqkernels import Stream, nn
from seqkernels.ops import attention_cpu, scan_cpu
from seqkernels.reference import attention_weights

# T, B, I, H, directions, batch_first, bias
SHAPES = {
    "odd": (5, 3, 7, 33, 2, True, True),
    "row": (70, 1, 33, 40, 2, False, True),
    "blocks": (20, 40, 65, 130, 1, True, True),
    "deep": (2, 7, 601, 530, 1, False, False),
}


@pytest.mark.parametrize("cell", [pytest.param(c, marks=pytest.mark.slow if c in ALIKE else ()) for c in CELLS])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_agrees(cell, shape):
    problem = Problem(cell, shape, torch.bfloat16)
    given = cell, problem.x, problem.h, problem.c, problem.weights, problem.batch_first, False
    y, h_n, c_n, *_ = scan_cpu.forward(*given)
    ours = problem.named((y, h_n, c_n), ())
    exact, theirs = problem.by_reference(torch.float64), problem.by_reference(torch.bfloat16)
    assert_agree(ours, *({name: results[name] for name in ours} for results in (exact, theirs)))
    assert all(value.dtype == torch.bfloat16 for value in ours.values())


@pytest.mark.parametrize("cell", ("lstm", *(pytest.param(c, marks=pytest.mark.slow) for c in ("gru", "rnn_tanh"))))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_agree(cell, shape):
    check_gradients(cell, shape)


@pytest.mark.slow
def test_gradients_agree_where_the_gates_are_made_anew():
    for shape in SHAPES.values():
        check_gradients("lstm", shape, recompute=True)


def check_gradients(cell, shape, **options):
    problem = Problem(cell, shape, torch.bfloat16)
    given = cell, problem.x, problem.h, problem.c, problem.weights
    *outputs, states, gates = scan_cpu.forward(*given, problem.batch_first, True, **options)
    assert states.dtype == torch.float32 and (gates is None) == bool(options)
    upstream = problem.dy, problem.dh, problem.dc
    *gradients, dweights = scan_cpu.backward(
        cell, *upstream, *given[1:], states, gates, problem.batch_first, True, True
    )
    ours = problem.named(outputs, (*gradients, *dweights))
    assert_agree(ours, problem.by_reference(torch.float64), problem.by_reference(torch.bfloat16))


@pytest.mark.parametrize("ended", (False, True))
def test_ragged_gradients_agree_with_those_of_rows_alone(ended):
    """Rows of a batch that end apart, in both directions, against each row by itself."""
    module = nn.LSTM(9, 33, bidirectional=True, dtype=torch.bfloat16)
    lengths = [7, 7, 4, 3, 1] if ended else [5] * 5
    rows = [torch.randn(n, 9).bfloat16().requires_grad_() for n in lengths]
    packed = torch.nn.utils.rnn.pack_sequence(rows)
    y, _ = module(packed)
    upstream = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 66).bfloat16() for n in lengths])
    together = torch.autograd.grad(y.data, [*rows, *module.parameters()], upstream.data)
    given, _ = torch.nn.utils.rnn.pad_packed_sequence(upstream)
    alone = [torch.zeros_like(t, dtype=torch.float32) for t in together]
    for i, (row, n) in enumerate(zip(rows, lengths)):
        out, _ = module(row.unsqueeze(1))
        made = torch.autograd.grad(out, [row, *module.parameters()], given[:n, i : i + 1])
        for total, gradient in zip((alone[i], *alone[len(rows) :]), made):
            total += gradient
    for mine, wanted in zip(together, alone):
        torch.testing.assert_close(mine.float(), wanted, rtol=0, atol=2.0**-6 * wanted.abs().max().item())


def test_c_is_kept_in_float32_over_time():
    """Increments smaller than bfloat16's steps at 1 add up: f and i of about 1, g of about 2^-9."""
    module = nn.LSTM(1, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
        module.bias_ih_l0.copy_(torch.tensor([8.0, 16.0, 2.0**-9, 0.0]).repeat_interleave(16))
        states = torch.zeros(1, 1, 16).bfloat16(), torch.ones(1, 1, 16).bfloat16()
        _, (_, c) = module(torch.zeros(256, 1, 1).bfloat16(), states)
    torch.testing.assert_close(c, torch.full_like(c, 1.5))


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
def test_nan_and_infinity_stay_in_their_row(value):
    module = nn.RNN(33, 20, nonlinearity="relu", dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight_ih_l0.abs_()
        x = torch.rand(3, 5, 33).bfloat16()
        plain = module(x)[0]
        x[1, 2, 32] = value
        y = module(x)[0]
    others = [0, 1, 3, 4]
    assert torch.equal(y[:, others], plain[:, others])
    want = torch.nn.functional.relu(torch.tensor(value)).bfloat16()
    torch.testing.assert_close(y[1, 2], want.expand(20), equal_nan=True)


def test_rounding_is_to_the_nearest_and_even():
    """A cell that copies: relu of an identity times x, where every sum is exact."""
    module = nn.RNNCell(2, 1, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    low = torch.randint(0, 1 << 14, (4000, 1), dtype=torch.int32) << 16
    high = low.view(torch.float32)
    x = torch.cat([high, high * 2.0**-9 * torch.randint(0, 8, high.shape)], 1).bfloat16()
    with torch.no_grad():
        module.weight_ih.fill_(1)
        module.weight_hh.zero_()
        exact = x.double().sum(1, keepdim=True)
        normal = (exact > 1e-35) & (exact < 1e38)
        ours, want = module(x), exact.float().bfloat16()
    same_sum = exact.float().double() == exact
    assert (normal & same_sum).sum() > 1000
    assert torch.equal(ours[normal & same_sum], want[normal & same_sum])


@pytest.mark.parametrize("threads", (2, 3))
def test_same_bits_for_any_number_of_threads(threads):
    problem = Problem("lstm", (60, 67, 64, 96, 2, False, True), torch.bfloat16)
    given = "lstm", problem.x, problem.h, problem.c, problem.weights, False, False
    torch.set_num_threads(1)
    alone = scan_cpu.forward(*given)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, alone[:3], scan_cpu.forward(*given)[:3]))


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_stream_and_cells_step_as_the_layer_does(kind):
    module = getattr(nn, kind)(9, 33, 2, dtype=torch.bfloat16)
    cell = getattr(nn, f"{kind}Cell")(9, 33, dtype=torch.bfloat16)
    cell.load_state_dict({k[:-3]: v for k, v in module.state_dict().items() if k.endswith("l0")})
    x, stream = torch.randn(4, 3, 9).bfloat16(), Stream(module)
    first = getattr(nn, kind)(9, 33, dtype=torch.bfloat16)
    first.load_state_dict({k: v for k, v in module.state_dict().items() if k.endswith("l0")})
    with torch.no_grad():
        wanted, state = module(x)[0], None
        for t in range(4):
            torch.testing.assert_close(stream(x[t]), wanted[t], rtol=0, atol=2.0**-7)
            state = cell(x[t], state)
            h = state[0] if kind == "LSTM" else state
            torch.testing.assert_close(h, first(x)[0][t], rtol=0, atol=2.0**-7)


@pytest.mark.parametrize("T, S, D, Dv, heads", ((1, 300, 64, 64, 4), (3, 65, 33, 20, 2), (40, 90, 64, 17, 1)))
def test_attention_agrees(T, S, D, Dv, heads):
    q, k, v = (torch.randn(2, n, t, d).bfloat16() for n, t, d in ((4, T, D), (heads, S, D), (heads, S, Dv)))
    exact = attention_weights(q.double(), k.double(), enable_gqa=True) @ v.double().repeat_interleave(4 // heads, 1)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    ours = attention_cpu.forward(q, k, v)
    assert ours.dtype == torch.bfloat16
    error = (ours - exact).abs().max()
    assert error <= max(2 * (theirs - exact).abs().max(), 2.0**-8 * exact.abs().max())


@without_dots.features_and_tests(
    "test_forward_agrees and lstm or rounding",
    "test_forward_agrees and gru or nan_and or attention_agrees",
    "test_forward_agrees and lstm or rounding or attention_agrees",
)
def test_without_the_instruction(features, chosen, kernel_environment):
    without_dots.run(__file__, features, chosen, kernel_environment)
