"""Streams: the same numbers as the whole sequence, state in and out, and no allocation after the first step."""

import tracemalloc

import pytest
import torch
from stream_cases import assert_gradients_refuse_what_was_overwritten
from torch.utils._python_dispatch import TorchDispatchMode

from seqkernels import Stream, nn

I, T, B = 5, 7, 3
MODULES = {
    "RNN": lambda **k: nn.RNN(I, 33, **k),
    "RNN sigmoid": lambda **k: nn.RNN(I, 8, nonlinearity="sigmoid", **k),
    "LSTM": lambda **k: nn.LSTM(I, 33, **k),
    "GRU": lambda **k: nn.GRU(I, 33, **k),
    "learned": lambda **k: nn.LSTM(I, 8, learn_initial_state=True, **k),
}


def whole(module, x, hx=None):
    """y (T, ..., H) and the final state, whatever the module's layout."""
    with torch.no_grad():
        if x.dim() == 3 and module.batch_first:
            y, hx = module(x.transpose(0, 1), hx)
            return y.transpose(0, 1), hx
        return module(x, hx)


@pytest.mark.parametrize("options", ({}, {"num_layers": 3, "bias": False}, {"batch_first": True, "num_layers": 2}))
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_steps_are_the_sequence(make, options):
    module = make(**options, dtype=torch.float64)
    for name in ("h_0", "c_0"):
        if name in dict(module.named_parameters()):
            torch.nn.init.normal_(getattr(module, name))
    stream = Stream(module)
    for x in (torch.randn(T, B, I), torch.randn(T, I), torch.randn(T, 20, 2 * I)[..., ::2]):
        x = x.double()
        stream.reset()
        y, state = whole(module, x)
        for t in range(T):
            torch.testing.assert_close(stream(x[t]), y[t])
        torch.testing.assert_close(stream.state, state)
        again, final = whole(module, x, state)
        stream.reset(state)
        for t in range(T):
            torch.testing.assert_close(stream(x[t]), again[t])
        torch.testing.assert_close(stream.state, final)


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU])
def test_threads_share_a_step_and_change_no_bit(make):
    """Large enough that two threads share the weights, in place: neither may see the other's part of the new state."""
    module, x = make(I, 700, num_layers=2), torch.randn(12, 1, I)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        stream = Stream(module)
        runs.append([stream(x_t).clone() for x_t in x])
        module.weight_hh_l1.data.mul_(2)
        changed = stream(x[0]).clone()
        module.weight_hh_l1.data.mul_(0.5)
        runs[-1].append(changed)
    assert all(all(map(torch.equal, runs[0], run)) for run in runs[1:])
    assert not torch.equal(runs[0][-1], Stream(module)(x[0]))


@pytest.mark.parametrize("shape", ((1, B, 4), (1, 4)))
def test_the_given_state_is_copied_and_shown(shape):
    module = nn.LSTM(I, 4)
    state = [torch.randn(shape).requires_grad_() for _ in range(2)]
    kept, x = tuple(s.detach().clone() for s in state), torch.randn((*shape[1:-1], I))
    stream = Stream(module)
    stream.reset(state)
    with torch.no_grad():
        expected = module(x.unsqueeze(0), kept)[1]
        for s in state:
            s.zero_()
    torch.testing.assert_close(stream.state, kept)
    assert not stream.state[0].requires_grad
    stream(x)
    torch.testing.assert_close(stream.state, expected)


@pytest.mark.parametrize("make", (lambda: nn.LSTM(I, 8, 2), lambda: nn.LSTM(I, 8, proj_size=3)))
@pytest.mark.parametrize("shape", ((B, I), (I,)))
def test_gradients_refuse_what_was_overwritten(make, shape):
    stream, x = Stream(make()), torch.randn(shape)
    assert_gradients_refuse_what_was_overwritten(stream, x)
    weight = torch.ones(1, requires_grad=True)
    loss = (stream(x, out=torch.empty_like(stream(x))) * weight).sum()
    stream(x)
    loss.backward()


def test_a_first_step_that_fails_fixes_nothing():
    module = nn.GRU(I, 8)
    stream, state = Stream(module), torch.randn(1, B, 8)
    for given in (None, state):
        stream.reset(given)
        for bad in (torch.randn(2, I).double(), torch.randn(2, 2)):
            with pytest.raises((RuntimeError, ValueError)):
                stream(bad)
        assert stream.state is None if given is None else torch.equal(stream.state, state)
        x = torch.randn(B, I)
        torch.testing.assert_close(stream(x), whole(module, x.unsqueeze(0), given)[0][0])


def test_dropout_is_refused_where_a_stream_starts():
    module = nn.LSTM(I, 8, 2, dropout=0.5).eval()
    stream, x = Stream(module), torch.randn(B, I)
    module.train()
    with pytest.raises(ValueError, match="call module.eval"):
        stream(x)
    module.eval()
    assert stream(x).shape == (B, 8)


def test_the_buffer_is_overwritten_and_out_is_not():
    stream = Stream(nn.LSTM(I, 8))
    x = torch.randn(2, B, I)
    first = stream(x[0])
    kept = first.clone()
    out = torch.empty(B, 8)
    assert stream(x[1], out=out) is out
    assert stream._y is first
    assert not torch.equal(first, kept)
    assert torch.equal(out, first)
    stream(x[0])
    assert not torch.equal(out, first)


class Allocations(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"a torch operator ran: {function}")


@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
def test_no_operator_and_no_growth_after_the_first_step(kind):
    stream = Stream(getattr(nn, kind)(I, 8, 2))
    x = torch.randn(B, I)
    with torch.profiler.profile(profile_memory=True) as profile:
        stream(x)
    for _ in range(3):
        stream(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(10):
            stream(x)
    assert not profile.key_averages()
    tracemalloc.start()
    try:
        for steps in (100, 1000):  # the first hundred fill the interpreter's lists of free objects
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(steps):
                stream(x)
        assert tracemalloc.get_traced_memory()[0] - before < 200
    finally:
        tracemalloc.stop()


def test_changed_weights_are_seen():
    module = nn.GRU(I, 8, dtype=torch.float64)
    stream = Stream(module)
    x = torch.randn(2, B, I, dtype=torch.float64)
    stream(x[0])
    state = stream.state.clone()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
        torch.testing.assert_close(stream(x[1]), module(x[1:], state)[0][0])


def test_what_no_kernel_serves_runs_through_the_module():
    for module in (nn.LSTM(I, 8, proj_size=3), nn.GRU(I, 8).half()):
        dtype = module.weight_ih_l0.dtype
        x = torch.randn(T, B, I).to(dtype)
        y, state = whole(module, x)
        stream = Stream(module)
        for t in range(T):
            torch.testing.assert_close(stream(x[t]), y[t])
        torch.testing.assert_close(stream.state, state)


def test_modes_and_gradients():
    """No gradient is recorded; under a mode the module runs, and the mode sees it; inference tensors are taken."""
    module = nn.LSTM(I, 8)
    x = torch.randn(3, B, I, requires_grad=True)
    y, _ = whole(module, x)
    stream = Stream(module)
    torch.testing.assert_close(stream(x[0]), y[0])
    assert not stream._y.requires_grad
    with pytest.raises(AssertionError, match="a torch operator ran"), Allocations():
        stream(x[1])
    with torch.inference_mode():
        torch.testing.assert_close(stream(x[1].clone()), y[1])
    torch.testing.assert_close(stream(x[2]), y[2])


def test_a_second_batch_size_needs_a_reset():
    stream = Stream(nn.RNN(I, 8))
    assert stream.state is None
    assert stream(torch.randn(B, I)).shape == (B, 8)
    stream.reset()
    assert stream.state is None
    assert stream(torch.randn(I)).shape == (8,)
