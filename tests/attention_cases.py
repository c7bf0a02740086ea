"""What the attention tests share: inputs, the float64 reference, and the tolerance."""

import math

import torch
from torch.nn.functional import scaled_dot_product_attention as torch_attention

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
