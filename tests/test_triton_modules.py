"""The modules on the Triton kernels: on a GPU, or as with SEQKERNELS_IMPL=triton, in Triton's interpreter."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from agreement import assert_agree
from device import DEVICE, INTERPRETED
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import seqkernels
from seqkernels import _backends, nn
from seqkernels.ops import attention_gpu, scan_gpu

OPTIONS = {
    "plain": {},
    "deep both ways": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False},
}
LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
I, H, B, T = 5, 18, 3, 4


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Triton takes CPU tensors. A list that grows with every scan and attention that it runs."""
    monkeypatch.setattr(_backends, "chosen", "triton")
    seen = []
    for driver, name in itertools.product((scan_gpu, attention_gpu), ("forward", "backward")):
        run = getattr(driver, name)
        monkeypatch.setattr(driver, name, lambda *a, run=run, name=name, **k: (seen.append(name), run(*a, **k))[1])
    return seen


def results(module, x):
    """Outputs and all gradients of a module by name."""
    x = x.detach().to(next(module.parameters())).requires_grad_()
    outputs = [t for t in torch.utils._pytree.tree_leaves(module(x)) if isinstance(t, torch.Tensor)]
    wanted = {"dx": x, **{f"d{name}": p for name, p in module.named_parameters()}}
    seeds = [torch.linspace(-1, 1, t.numel(), dtype=torch.float64).view(t.shape).to(t) for t in outputs]
    gradients = torch.autograd.grad(outputs, list(wanted.values()), seeds)
    named = {f"output{i}": t.detach() for i, t in enumerate(outputs)} | dict(zip(wanted, gradients))
    return {name: tensor.cpu() for name, tensor in named.items()}


def assert_torchs(ours, kind, x, **options):
    """Ours agree with torch.nn's module of the same weights in float64, and no worse than that in float32."""
    theirs = getattr(torch.nn, kind)(I, H, **options)
    theirs.load_state_dict(ours.state_dict())
    got, close = results(ours.to(DEVICE), x), results(theirs, x)
    assert_agree(got, results(theirs.double(), x), close)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_torchs(kind, options, launches):
    ours = getattr(nn, kind)(I, H, **options)
    x = torch.randn(B, T, I)
    assert seqkernels.explain(ours.to(DEVICE), x.to(DEVICE)).path == "kernel"
    assert_torchs(ours, kind, x, **options)
    assert launches == ["forward"] * ours.num_layers + ["backward"] * ours.num_layers


@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_torchs(kind, launches):
    assert_torchs(getattr(nn, kind)(I, H), kind, torch.randn(B, I))
    assert launches == ["forward", "backward"]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_stream_gives_what_the_module_gives(kind, launches):
    module, x = getattr(nn, kind)(I, H).to(DEVICE), torch.randn(T, B, I, device=DEVICE)
    stream = seqkernels.Stream(module)
    with torch.no_grad():
        whole = module(x)[0]
    steps = torch.stack([stream(x_t).clone() for x_t in x])
    torch.testing.assert_close(steps, whole, rtol=1e-5, atol=1e-6)
    assert launches == ["forward"], "a step of the stream is not a scan"


def test_a_plain_training_call_is_one_node_past_the_operators_rule_for_lists():
    module, x = nn.GRU(I, H).to(DEVICE), torch.randn(T, B, I, device=DEVICE)
    assert "_Recorded" in module(x)[0].grad_fn.name()


def test_opcheck():
    def make(*shape):
        return torch.randn(shape, device=DEVICE).requires_grad_()

    weights = [make(4 * H, I), make(4 * H, H), make(4 * H), make(4 * H)]
    given = "lstm", make(T, B, I), make(1, B, H), make(1, B, H), weights, False, True
    opcheck(torch.ops.seqkernels.scan.default, given)


def test_what_triton_does_not_take_goes_to_torch_with_a_reason():
    lstm, x = nn.LSTM(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
    assert "float64: the kernels take float32, float16 and bfloat16" in lstm.fallback_reason(x)


def test_without_triton_a_cuda_tensor_gets_torchs_path_and_the_reason(monkeypatch):
    monkeypatch.setattr(_backends, "HAS_TRITON", False)
    assert "triton, which is not installed" in nn.LSTM(I, H).fallback_reason(torch.randn(T, B, I))


def test_a_gpu_that_is_too_old_gets_torchs_path_and_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), "the kernels need compute capability 8.0 or later"), ((8, 0), "None")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        _backends.too_old.cache_clear()
        with FakeTensorMode():
            assert expected in str(_backends.reason("x", torch.empty(2, device="cuda")))
    _backends.too_old.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="with a GPU kernels are not interpreted")
def test_bfloat16_is_left_to_torch_in_the_interpreter():
    lstm, x = nn.LSTM(I, H, dtype=torch.bfloat16), torch.randn(T, B, I, dtype=torch.bfloat16)
    assert "interpreter gets wrong" in lstm.fallback_reason(x)


def run(code, implementation):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["SEQKERNELS_IMPL"] = implementation
    options = {"capture_output": True, "text": True, "timeout": 300, "env": environment}
    return subprocess.run([sys.executable, "-c", code], check=False, **options)


def test_the_environment_chooses_triton():
    code = (
        f"import sys, torch; from seqkernels import nn; place = {{'device': '{DEVICE}'}};"
        "print(nn.LSTM(3, 4, **place)(torch.ones(2, 1, 3, **place))[0].shape);"
        "print('seqkernels.ops.scan_gpu' in sys.modules, 'numba' in sys.modules)"
    )
    assert run(code, "triton").stdout.split("\n")[:2] == ["torch.Size([2, 1, 4])", "True False"]


def test_another_choice_is_refused():
    assert "SEQKERNELS_IMPL must be one of auto, triton, got 'cudnn'" in run("import seqkernels.nn", "cudnn").stderr
