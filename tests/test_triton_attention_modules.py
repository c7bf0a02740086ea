"""Attention's operator, function and module on the Triton kernels: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from agreement import assert_agree
from attention_cases import inputs
from device import DEVICE
from torch.library import opcheck
from torch.nn import functional as F

from seqkernels import _backends, functional, nn
from seqkernels.ops import attention_gpu

sdpa = functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Triton takes CPU tensors. A list that grows with every attention that it runs."""
    monkeypatch.setattr(_backends, "chosen", "triton")
    seen = []
    for name in ("forward", "backward"):
        run = getattr(attention_gpu, name)
        monkeypatch.setattr(attention_gpu, name, lambda *a, run=run, name=name: (seen.append(name), run(*a))[1])
    return seen


def results(function, *tensors):
    """The output of a function of tensors, and their gradients, by name."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    seed = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    gradients = torch.autograd.grad(out, leaves, seed)
    return {"out": out.detach().cpu(), **{f"d{i}": g.cpu() for i, g in enumerate(gradients)}}


OPTIONS = {
    "full": ({}, 4, None),
    "causal": ({"is_causal": True}, 4, None),
    "grouped, scaled": ({"enable_gqa": True, "scale": 0.3}, 2, None),
    "mask": ({}, 4, (20, 30)),
}


@pytest.mark.parametrize("batched", (True, False), ids=("batched", "unbatched"))
@pytest.mark.parametrize("options, heads, mask", OPTIONS.values(), ids=OPTIONS)
def test_the_function_is_torchs(options, heads, mask, batched, launches):
    if not batched and heads != 4:
        heads, options = 4, {"scale": 0.3}
    q, k, v = inputs(2, 4, 20, 30, 8, 5, heads)
    if not batched:
        q, k, v = q[0], k[0], v[0]
    mask = None if mask is None else torch.rand(mask) < 0.7
    device_mask = None if mask is None else mask.to(DEVICE)
    ours = results(lambda *t: sdpa(*t, device_mask, impl="kernel", **options), *(t.to(DEVICE) for t in (q, k, v)))
    theirs = results(lambda *t: F.scaled_dot_product_attention(*t, mask, **options), q, k, v)
    exact = results(lambda *t: F.scaled_dot_product_attention(*t, mask, **options), *(t.double() for t in (q, k, v)))
    assert_agree(ours, exact, theirs)
    assert launches == ["forward", "backward"]


def test_dropout_is_the_references_for_the_same_generator():
    q, k, v = (t.to(DEVICE) for t in inputs(1, 2, 20, 30, 8))

    def run(impl):
        return results(lambda *t: sdpa(*t, None, 0.4, impl=impl), q, k, v)

    runs = []
    for impl in ("kernel", "reference", "kernel"):
        torch.manual_seed(3)
        runs.append(run(impl))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name])
        assert torch.equal(runs[0][name], runs[2][name])
    assert not torch.equal(runs[0]["out"], run("kernel")["out"])


def test_what_is_not_served_has_a_reason():
    q, k, v = (t.to(DEVICE) for t in inputs(1, 2, 3, 4, 8))
    served = functional.attention_reasons
    assert not served(q.requires_grad_(), k, v, dropout_p=0.5)
    assert "attn_mask needs a gradient" in served(q, k, v, torch.zeros(3, 4, device=DEVICE, requires_grad=True))[0]
    assert "float64" in served(q.double(), k.double(), v.double())[0]
    wide = v.new_zeros(1, 2, 4, 257)
    assert "a head has size 257: the kernels go up to 256" in served(q, k, wide)[0]
    with pytest.raises(NotImplementedError, match="257"):
        sdpa(q, k, wide, impl="kernel")
    assert "refused by torch" in served(q, k, v, dropout_p=1.5)[0]
    operator = torch.ops.seqkernels.attention
    with pytest.raises(NotImplementedError, match="257"):
        operator(q, k, wide, None, False, None)
    with pytest.raises(ValueError, match="dropout_p must be from 0 to 1, got -1"):
        operator(q, k, v, None, False, None, -1.0)
    with pytest.raises(RuntimeError, match=r"seed must be int64 \[1\] on .*, got None"):
        operator(q, k, v, None, False, None, 0.5)


def test_opcheck():
    q, k, v = (t.to(DEVICE).requires_grad_() for t in inputs(1, 2, 5, 7, 4))
    mask, seed = torch.rand(5, 7, device=DEVICE) < 0.7, torch.tensor([1], device=DEVICE)
    opcheck(torch.ops.seqkernels.attention.default, (q, k, v, mask, True, None, 0.5, seed))
    out, lse = (t.detach() for t in torch.ops.seqkernels.attention(q, k, v, None, False, None))
    given = torch.ones_like(out), q, k, v, None, out, lse, False, None, 0.0, None
    opcheck(torch.ops.seqkernels.attention_backward.default, given)


def test_gradients_of_gradients_and_of_a_mask():
    q, k, v = (t.to(DEVICE).requires_grad_() for t in inputs(1, 2, 5, 7, 4))
    mask = torch.randn(5, 7, device=DEVICE, requires_grad=True)

    def twice(attention):
        first = torch.autograd.grad(attention().square().sum(), (q, k, v, mask), create_graph=True)
        return (*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (q, k, v, mask)))

    ours = twice(lambda: torch.ops.seqkernels.attention(q, k, v, mask, False, None)[0])
    for a, b in zip(ours, twice(lambda: sdpa(q, k, v, mask, impl="reference")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_first", (False, True))
def test_the_module_trains_as_torchs(batch_first, launches):
    ours = nn.MultiheadAttention(16, 2, batch_first=batch_first)
    theirs = torch.nn.MultiheadAttention(16, 2, batch_first=batch_first)
    theirs.load_state_dict(ours.state_dict())
    x, padding = torch.randn(3, 5, 16), torch.rand(*((3, 5) if batch_first else (5, 3))) < 0.3
    names = [name for name, _ in ours.named_parameters()]

    def run(module, x):
        padded = padding.to(x.device)

        def function(x, *parameters):
            given = (x, x, x, padded, False)
            return torch.func.functional_call(module, dict(zip(names, parameters)), given)[0]

        return results(function, x, *module.parameters())

    got = run(ours.to(DEVICE), x.to(DEVICE))
    assert_agree(got, run(theirs.double(), x.double()), run(theirs.float(), x))
    assert launches == ["forward", "backward"]


def test_dropout_in_the_module(launches):
    module, x = nn.MultiheadAttention(16, 2, dropout=0.5).to(DEVICE), torch.randn(5, 3, 16, device=DEVICE)
    runs = [module(x, x, x, need_weights=False)[0] for _ in range(2)]
    assert len(launches) == 2 and not torch.equal(*runs)
    assert "need_weights" in module.fallback_reason(x, x, x)
    module.eval()
    assert torch.equal(*(module(x, x, x, need_weights=False)[0] for _ in range(2)))
