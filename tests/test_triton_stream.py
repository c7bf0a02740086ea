"""A stream on the Triton step: on a GPU, where it replays a CUDA graph, or in Triton's interpreter, where what would be
recorded is run."""

import pytest
import torch
from agreement import assert_agree
from device import DEVICE, INTERPRETED
from seqkernels.kernels.cells import CELLS
from stream_cases import assert_gradients_refuse_what_was_overwritten

from seqkernels import Stream, _backends, nn, reference
from seqkernels.ops import step_gpu, stream_gpu

needs_cuda = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device: what is recorded is a CUDA graph")
I, H, T, B = 5, 4, 3, 3
MODULES = {
    "RNN": lambda: nn.RNN(I, H, 2),
    "RNN sigmoid": lambda: nn.RNN(I, H, nonlinearity="sigmoid", bias=False),
    "LSTM": lambda: nn.LSTM(I, H, 2, batch_first=True),
    "LSTM learned": lambda: nn.LSTM(I, H, learn_initial_state=True),
    "GRU": lambda: nn.GRU(I, H, 2, bias=False),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    monkeypatch.setattr(_backends, "chosen", "triton")


@pytest.fixture
def made(monkeypatch):
    """How the steps were made, in order: "run" where it was not a replay, "recorded" before the first replay of one."""
    seen = []
    for name, word in (("warm_up", "run"), ("record", "recorded")):
        function = getattr(stream_gpu, name)
        monkeypatch.setattr(stream_gpu, name, lambda *a, f=function, word=word: (seen.append(word), f(*a))[1])
    return seen


def prepared(make):
    """A module with all its parameters random."""
    module = make().to(DEVICE)
    for p in module.parameters():
        torch.nn.init.uniform_(p, -0.5, 0.5)
    return module


def stepped(stream, x):
    """All outputs and the final state, by name, on the CPU."""
    y = torch.stack([stream(x_t).clone() for x_t in x])
    state = stream.state if isinstance(stream.state, tuple) else (stream.state,)
    return {name: t.detach().clone().cpu() for name, t in zip(("y", "h", "c"), (y, *state))}


def by_reference(module, x, dtype):
    """The same, layer by layer over the whole sequence, on the CPU."""
    kind, L, rows = CELLS[module._cell], module.num_layers, x.shape[1] if x.dim() == 3 else 1
    weights = [w.detach().to("cpu", dtype) for w in module._flat_weights]
    per, ends, y = len(weights) // L, [], x.to("cpu", dtype).view(len(x), rows, I)
    for i in range(L):
        starts = [torch.zeros(1, rows, H, dtype=dtype)] * kind.states
        if module.learn_initial_state:
            starts = [s.detach().to("cpu", dtype)[i].expand(1, rows, H) for s in (module.h_0, module.c_0)]
        h_0, c_0 = (*starts, None)[:2]
        y, *end = reference.scan(module._cell, y, h_0, c_0, weights[i * per : i * per + per], False)[:3]
        ends.append(end[: kind.states])
    results = y, *map(torch.cat, zip(*ends))
    return dict(zip(("y", "h", "c"), results if x.dim() == 3 else (t.squeeze(1) for t in results)))


@pytest.mark.parametrize(
    "name, shape",
    [*((name, (T, B, I)) for name in MODULES), ("GRU", (T, 1, I)), ("GRU", (T, I)), ("LSTM learned", (T, I))],
    ids=str,
)
def test_steps_are_the_sequence(name, shape, made):
    module, x = prepared(MODULES[name]), torch.randn(shape, device=DEVICE)
    ours = stepped(Stream(module), x)
    assert made == ["run", "recorded"]
    assert_agree(ours, by_reference(module, x, torch.float64), by_reference(module, x, torch.float32))


@modules
def test_a_stream_is_the_cpus(make, monkeypatch):
    module, x, ours = prepared(make), torch.randn(T, B, I), {}
    state = torch.randn(module.num_layers, B, H)
    state = (state, state + 1) if module._has_c else state
    for backend, device in (("triton", DEVICE), ("auto", "cpu")):
        monkeypatch.setattr(_backends, "chosen", backend)
        stream = Stream(module.to(device))
        given = [s.to(device) for s in state] if module._has_c else state.to(device)
        stream.reset(given)
        ours[backend] = stepped(stream, x.to(device))
    torch.testing.assert_close(ours["triton"], ours["auto"], rtol=1e-5, atol=1e-6)


def test_every_step_is_on_the_same_memory_and_launches_a_kernel_a_layer(made, monkeypatch):
    module, x = prepared(MODULES["LSTM"]), torch.randn(T, B, I, device=DEVICE)
    stream, steps, launch = Stream(module), [], step_gpu.write
    monkeypatch.setattr(step_gpu, "write", lambda *a: (steps.append(a), launch(*a))[1])
    y = stream(x[0])
    memory = [y, *stream.state]
    addresses = [t.data_ptr() for t in memory]
    for x_t in x[1:]:
        assert stream(x_t) is y and all(a is b for a, b in zip(stream.state, memory[1:]))
    assert [t.data_ptr() for t in memory] == addresses
    tensors = [[t.data_ptr() for t in (*a[1:4], *a[4], *a[5:])] for a in steps]
    assert all(tensors[i] == tensors[i % 2] for i in range(len(tensors))), "launches on other memory"
    assert len(steps) == (2 * T if INTERPRETED else 4)  # on a GPU: run once, recorded once
    assert made == ["run", "recorded"]


def test_the_state_may_be_changed_in_place():
    module, x = prepared(MODULES["GRU"]), torch.randn(T, B, I, device=DEVICE)
    stream = Stream(module)
    first = stepped(stream, x)
    with torch.no_grad():
        stream.state.zero_()
    torch.testing.assert_close(stepped(stream, x), first, rtol=0, atol=0)


def test_weights_that_change_in_place_are_seen_without_another_recording(made):
    module, x = prepared(MODULES["RNN"]), torch.randn(T, B, I, device=DEVICE)
    stream = Stream(module)
    stepped(stream, x)
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
        module.weight_ih_l1.data.add_(0.1)
    fresh = Stream(module)
    fresh.reset(stream.state)
    changed = stepped(stream, x)
    assert made == ["run", "recorded"]
    torch.testing.assert_close(changed, stepped(fresh, x), rtol=0, atol=0)


def test_weights_that_are_replaced_are_recorded_again(made):
    module, x = prepared(MODULES["RNN"]), torch.randn(T, B, I, device=DEVICE)
    stream = Stream(module)
    stepped(stream, x)
    old = module.weight_hh_l1
    module.weight_hh_l1 = torch.nn.Parameter(old.detach() * 2)
    fresh = Stream(module)
    fresh.reset(stream.state)
    changed = stepped(stream, x)
    assert made == ["run", "recorded"] * 2
    torch.testing.assert_close(changed, stepped(fresh, x), rtol=0, atol=0)


def test_weights_that_are_computed_at_each_step_are_not_kept(made):
    module, x = prepared(lambda: nn.GRU(I, H)), torch.randn(T, B, I, device=DEVICE)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        whole = module(x)[0]
    y = stepped(Stream(module), x)["y"]
    torch.testing.assert_close(y, whole.cpu(), rtol=1e-5, atol=1e-6)


def test_a_weight_of_another_layout_goes_through_the_module(made):
    module, x = prepared(lambda: nn.GRU(I, H)), torch.randn(T, B, I, device=DEVICE)
    stream = Stream(module)
    before = stepped(stream, x)
    stream.reset()
    module.weight_hh_l0 = torch.nn.Parameter(module.weight_hh_l0.detach().T.contiguous().T)
    torch.testing.assert_close(stepped(stream, x), before, rtol=1e-5, atol=1e-6)
    assert made == ["run", "recorded"]


def test_an_input_that_needs_a_gradient_or_lies_apart_is_taken(made):
    module, x = prepared(MODULES["RNN"]), torch.randn(T, B, 2 * I, device=DEVICE)[..., ::2]
    stream, fresh = Stream(module), Stream(module)
    assert not x.is_contiguous()
    expected = stepped(fresh, x.contiguous())
    y = torch.stack([stream(x_t.requires_grad_(t % 2 == 1)).clone() for t, x_t in enumerate(x.unbind())])
    assert not y.requires_grad
    torch.testing.assert_close(y.cpu(), expected["y"], rtol=0, atol=0)
    assert made == ["run", "recorded"] * 2


def test_gradients_refuse_what_was_overwritten():
    stream, x = Stream(prepared(MODULES["LSTM learned"])), torch.randn(B, I, device=DEVICE)
    for _ in range(2):
        assert_gradients_refuse_what_was_overwritten(stream, x)


def test_a_reset_takes_another_batch_and_out_is_not_overwritten():
    module = prepared(MODULES["RNN sigmoid"])
    stream = Stream(module)
    for rows in (B, 1):
        x = torch.randn(T, rows, I, device=DEVICE)
        outs = [stream(x_t, out=torch.empty(rows, H, device=DEVICE)) for x_t in x]
        with pytest.raises(RuntimeError, match="another batch"):
            stream(torch.randn(rows + 1, I, device=DEVICE))
        stream.reset()
        torch.testing.assert_close(torch.stack(outs).cpu(), stepped(stream, x)["y"], rtol=0, atol=0)
        stream.reset()


@needs_cuda
@modules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cuda_replays_give_what_runs_give(make, dtype):
    module, x = prepared(make).to(dtype), torch.randn(20, B, I, device=DEVICE, dtype=dtype)
    recorded = stepped(Stream(module), x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_gpu, "record", lambda step, device: step)
        torch.testing.assert_close(recorded, stepped(Stream(module), x), rtol=0, atol=0)


@needs_cuda
def test_cuda_steps_allocate_nothing():
    stream, x = Stream(prepared(MODULES["LSTM"])), torch.randn(B, I, device=DEVICE)
    for _ in range(3):
        stream(x)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        stream(x)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@needs_cuda
def test_cuda_steps_enter_the_callers_own_graph():
    module, x = prepared(MODULES["LSTM"]), torch.randn(T, B, I, device=DEVICE)
    stream, fresh = Stream(module), Stream(module)
    expected, here = stepped(fresh, x), x[0].clone()
    stream(here)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = stream(here)
    got = [stream._y.clone()]
    for x_t in x[1:]:
        here.copy_(x_t)
        graph.replay()
        got.append(y.clone())
    torch.testing.assert_close(torch.stack(got).cpu(), expected["y"], rtol=0, atol=0)
