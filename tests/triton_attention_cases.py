"""What the tests of attention's Triton kernels share: device, float64 oracle, torch's results, tolerance."""

import math

import torch
from agreement import error
from attention_cases import added, reference
from bfloat16_interpreter import repair
from device import INTERPRETED, back, there
from seqkernels.kernels.gpu.attention_configs import Config
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from seqkernels.ops import attention_gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = Config(queries=32, keys=32, warps=4, stages=1)
WIDE, TALL = Config(queries=16, keys=64, warps=4, stages=1), Config(queries=64, keys=16, warps=4, stages=1)
if INTERPRETED:
    repair()


def by_triton(q, k, v, dout, mask=None, causal=False, scale=None, p=0.0, seed=None, config=SMALL, descriptors=None):
    """out, lse and, of dout, dq, dk, dv, on the CPU, as the kernels have them."""
    q, k, v, dout, mask, seed = there(q, k, v, dout, mask, seed)
    given = causal, scale, p, seed
    out, lse = attention_gpu.forward(q, k, v, mask, *given, config, descriptors)
    gradients = attention_gpu.backward(dout, q, k, v, mask, out, lse, *given, config, config, descriptors)
    return list(back(out, lse, *gradients))


def exact(q, k, v, mask=None, causal=False, scale=None, dout=None):
    """out, lse and, of dout, dq, dk, dv in float64; nothing flows back through a query that sees no key."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    total = added(mask, causal, q.shape[2], k.shape[2])
    unseen = (total == -math.inf).all(-1, keepdim=True)
    out = torch.where(unseen, 0.0, reference(*leaves, total.masked_fill(unseen, 0.0), scale=scale))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    lse = (q.double() @ keys.mT * scale + total).logsumexp(3)
    return out.detach(), lse, *(() if dout is None else torch.autograd.grad(out, leaves, dout.double()))


def by_torch(q, k, v, mask=None, causal=False, scale=None, dout=None):
    """out, None and, of dout, dq, dk, dv as torch has them, in the inputs' dtype."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    if causal or mask is not None:
        mask = added(mask, causal, q.shape[2], k.shape[2]).to(q.dtype)
    out = torch_attention(*leaves, mask, scale=scale, enable_gqa=True)
    return out.detach(), None, *(() if dout is None else torch.autograd.grad(out, leaves, dout))


def assert_right(ours, q, k, v, mask=None, causal=False, scale=None, dout=None):
    """out, lse and, of dout, dq, dk, dv: errors are at most twice torch's own, or a few eps, of the largest value.

    4 eps of the dtype for out and lse. 8 for gradients: dS is a difference whose terms may be larger than itself, and
    torch's own error varies from one small tensor to another by more than twice.
    """
    arguments = q, k, v, mask, causal, scale, dout
    theirs, right = by_torch(*arguments), exact(*arguments)
    names = ("out", "lse", "dq", "dk", "dv")[: len(right)]
    for name, value, torchs, wanted in zip(names, ours, theirs, right, strict=True):
        assert value.is_contiguous() and value.dtype == (torch.float32 if name == "lse" else q.dtype), name
        if name == "lse":
            unseen = wanted == -math.inf
            assert torch.equal(value == -math.inf, unseen)
            value, wanted = value.masked_fill(unseen, 0.0), wanted.masked_fill(unseen, 0.0)
        allowed = (4 if name in ("out", "lse") else 8) * torch.finfo(value.dtype).eps
        if torchs is not None and torchs.isfinite().all():
            allowed = max(allowed, 2 * error(torchs, wanted))
        got = error(value, wanted)
        assert got <= allowed, f"{name} of q {tuple(q.shape)}, v {tuple(v.shape)}: {got:.2e}, allowed {allowed:.2e}"
