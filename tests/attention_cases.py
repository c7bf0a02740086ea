"""What the attention tests share: inputs, the float64 reference, and the tolerance."""

import math

import torch
from agreement import error
from torch.nn.functional import scaled_dot_product_attention as torch_attention

from seqkernels import reference as oracle

FLOATS = (torch.float32, torch.float64)
SIZES = (1, 8, 33, 64, 80, 128, 200)


def added(mask, causal, T, S):
    """The mask as float64 numbers to add to the scores."""
    total = torch.zeros(T, S, dtype=torch.float64)
    if mask is not None:
        total = total + (torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask.double())
    if causal:
        total = total.masked_fill(torch.ones(T, S).triu(1).bool(), -math.inf)
    return total


def reference(q, k, v, mask=None, causal=False, scale=None):
    """softmax(scale q k^T + mask) v in float64; rows that see no key are 0."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), *(x.double().repeat_interleave(group, 1) for x in (k, v))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(2, 3) * scale + added(mask, causal, q.shape[2], k.shape[2])
    weights = torch.where((scores == -math.inf).all(3, keepdim=True), 0.0, scores.softmax(3))
    return weights @ v


def check(function, q, k, v, mask=None, causal=False, scale=None):
    """The error is at most twice torch's own, or 4 eps (float32), or 1e-12 (float64), of the largest value."""
    ours = function(q, k, v, mask, causal, scale)
    exact = reference(q, k, v, mask, causal, scale)
    assert ours.shape == exact.shape and ours.dtype == q.dtype and ours.is_contiguous()
    largest = exact.abs().max().item()
    if q.dtype == torch.float64:
        allowed = 1e-12 * largest
    else:
        T, S = q.shape[2], k.shape[2]
        all_masks = added(mask, causal, T, S).float() if causal or mask is not None else None
        theirs = torch_attention(q, k, v, all_masks, scale=scale, enable_gqa=True)
        allowed = max(2 * (theirs - exact).abs().max().item(), 4 * torch.finfo(torch.float32).eps * largest)
    error = (ours - exact).abs().max().item()
    assert error <= allowed, f"q {tuple(q.shape)} k {tuple(k.shape)} v {tuple(v.shape)}: {error:.2e} > {allowed:.2e}"


def inputs(B, N, T, S, D, Dv=None, heads=None, dtype=torch.float32, size=1.0):
    shapes = (B, N, T, D), (B, heads or N, S, D), (B, heads or N, S, D if Dv is None else Dv)
    return [size * torch.randn(shape, dtype=dtype) for shape in shapes]


def exact(q, k, v, mask=None, causal=False, scale=None, dout=None):
    """out, lse and, of dout, dq, dk, dv in float64; nothing flows back through a query that sees no key."""
    leaves = [x.detach().double().clone().requires_grad_() for x in (q, k, v)]
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
    torch's own error varies from one small tensor to another by more than twice. 1e-12 for float64.
    """
    arguments = q, k, v, mask, causal, scale, dout
    theirs, right = by_torch(*arguments), exact(*arguments)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    names = ("out", "lse", "dq", "dk", "dv")[: len(right)]
    for name, value, torchs, wanted in zip(names, ours, theirs, right, strict=True):
        assert value.is_contiguous() and value.dtype == (dtype if name == "lse" else q.dtype), name
        if name == "lse":
            unseen = wanted == -math.inf
            assert torch.equal(value == -math.inf, unseen)
            value, wanted = value.masked_fill(unseen, 0.0), wanted.masked_fill(unseen, 0.0)
        allowed = (4 if name in ("out", "lse") else 8) * torch.finfo(value.dtype).eps
        if torchs is not None and torchs.isfinite().all():
            allowed = max(allowed, 2 * error(torchs, wanted))
        if value.dtype == torch.float64:
            allowed = 1e-12
        got = error(value, wanted)
        if name == "lse":  # whose error is a relative one of all weights
            got *= min(1.0, wanted.abs().max().item() or 1.0)
        assert got <= allowed, f"{name} of q {tuple(q.shape)}, v {tuple(v.shape)}: {got:.2e}, allowed {allowed:.2e}"


def partly_blind(kind):
    """A mask (40, 200), "bool" or "float", with rows 3 and 39 that see no key."""
    mask = torch.rand(40, 200) < 0.5
    mask[3] = mask[39] = False
    mask[5, :150], mask[6, 10:] = False, False  # whole blocks of keys are hidden, but not all
    return torch.where(mask, 0.0, -math.inf) if kind == "float" else mask


def assert_drops_right(run, T, S, causal, p, dtype):
    """run(q, k, v, dout, mask, causal, scale, p, seed) -> out, lse, dq, dk, dv, against the formulas with the dropped
    weights written out in plain torch operators; then the arguments, and what run returned."""
    q, k, v = inputs(2, 4, T, S, 16, 8, 2, dtype)
    dout, mask, seed = torch.randn(2, 4, T, 8, dtype=dtype), torch.rand(T, S) < 0.8, torch.tensor([-(1 << 62) - 7])
    given = q, k, v, dout, mask, causal, None, p, seed
    out, lse, *gradients = run(*given)

    def exactly(*tensors):
        q, k, v, dout = tensors
        dropped = oracle.scaled_dot_product_attention(q, k, v, mask, p, causal, enable_gqa=True, seed=seed)
        return dropped, *oracle.attention_gradients(dout, q, k, v, mask, causal, None, p, seed)[:3]

    rounded, exact = exactly(q, k, v, dout), exactly(*(x.double() for x in (q, k, v, dout)))
    for name, ours, plain, wanted in zip(("out", "dq", "dk", "dv"), (out, *gradients), rounded, exact, strict=True):
        allowed = 1e-12 if dtype == torch.float64 else max(2 * error(plain, wanted), 8 * torch.finfo(dtype).eps)
        assert error(ours, wanted) <= allowed, name
    return given, (out, lse, *gradients)
