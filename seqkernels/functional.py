"""The operations as functions: scan, step and scaled_dot_product_attention.

Each takes impl="auto", "kernel" or "reference". "auto" runs on the kernels where they serve the call, and otherwise on
plain torch operators; "kernel" raises NotImplementedError, with the reasons, where they do not; "reference" never uses
them.

Letters: `T` time (queries), `B` batch, `I` input size, `H` hidden size, `G` gates, `D` directions, or head size, `N`
heads.
"""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import functional as F

from . import _backends, _check, reference
from ._backends import DTYPES
from .ops import attention as _attention
from .ops import scan as _scan
from .ops.autocast import lowered
from .reference import ScanOutput

__all__ = ["ScanOutput", "scaled_dot_product_attention", "scan", "step"]


def scan(
    cell,
    x,
    h_0=None,
    c_0=None,
    weights=(),
    *,
    batch_first=False,
    lengths=None,
    reset=None,
    reset_state=None,
    return_states=False,
    recompute=False,
    impl="auto",
):
    """One layer of a recurrent network over a whole sequence, in one direction or two.

    Args:
        cell: "rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm" or "gru".
        x: (T, B, I), or (B, T, I) with batch_first; any floating dtype (the kernels: float32 and
            float64 on a CPU, float32, float16 and bfloat16 on a GPU).
        h_0, c_0: (D, B, H), D = 1 or 2, the second direction running in reverse. Zero by default; then D is taken from
            the weights: 2 or 4 of them are one direction if weights[2] is a bias or absent.
        weights: D times w_ih (G*H, I), w_hh (G*H, H)[, b_ih (G*H), b_hh (G*H)], gates in torch.nn's order.
        lengths: (B,) integers, 0 to T: row b ends after lengths[b] steps; outputs past the end are zero, final states
            are those of the last valid step, the reverse direction starts there.
        reset: (T, B) bool, or (B, T) with batch_first: where true, the row's state is replaced before that step, by
            zero (not by h_0) or by reset_state = (h, c), each (D, B, H), c None for a cell without c.
        return_states: also return every c_t and the values that the cell saves.
            The kernels take it where no gradient is needed.
        recompute: for a gradient, keep the states alone and make the rest anew in the backward. Gradients are the same
            up to rounding. Of no effect where the reference runs.

    Returns:
        ScanOutput(y, h_n, c_n, c, gates): y (T, B, D*H), or (B, T, D*H); h_n (D, B, H); c_n (D, B, H), None without c;
        c (D, T, B, H) and gates (D, T, saved, B, H), None unless asked for.

    Raises:
        ValueError: unknown cell or impl, a dtype other than x's, c_0 without a c, bad lengths, reset or reset_state.
        RuntimeError: sizes or devices that do not fit, an empty sequence.
        NotImplementedError: impl="kernel" and no kernel serves the call; the message says why.
    """
    weights = list(weights)
    x, h_0, c_0, weights, reset_state = lowered(x.device, x, h_0, c_0, weights, reset_state)
    if h_0 is None:
        h_0, c_0 = _zero_states(cell, x, c_0, weights, batch_first)
    T = _check.scan_arguments(cell, x, h_0, c_0, weights, batch_first)[0]
    ragged = _ragged(x, h_0, c_0, batch_first, lengths, reset, reset_state, T)
    asked = {"lengths": lengths, "reset": reset, "return_states": return_states or None}
    reasons = _backends.option_reasons([name for name, value in asked.items() if value is not None], x)
    tensors = {"x": x, "h_0": h_0, "c_0": c_0, **{f"weights[{i}]": w for i, w in enumerate(weights)}}
    if return_states and _scan.needs_gradient(*tensors.values(), *ragged):
        reasons.append("no kernel takes return_states= where a gradient is needed")
    if not _use_kernel(impl, reasons + _reasons(tensors)):
        return reference.scan(cell, x, h_0, c_0, weights, batch_first, lengths, reset, reset_state, return_states)
    _check_stored(tensors)
    if return_states:
        return ScanOutput(*_scan.with_states(cell, x, h_0, c_0, weights, batch_first, *ragged))
    y, h_n, c_n = _scan.through_operator(cell, x, h_0, c_0, weights, batch_first, *ragged, recompute=recompute)
    return ScanOutput(y, h_n, None if c_0 is None else c_n)


def step(cell, x, h, c=None, weights=(), *, impl="auto"):
    """One time step of one direction: x (B, I), h (B, H), c (B, H) for "lstm", else None; weights as for `scan`.

    Returns (h', c'), each (B, H), c' None for a cell without c. Raises as `scan`.
    """
    weights = list(weights)
    for name, tensor in (("x", x), ("h", h), ("c", c)):
        if tensor is not None and tensor.dim() != 2:
            raise RuntimeError(f"{name} must have 2 dimensions, got {tensor.dim()}")
    x, h, c, weights = lowered(x.device, x, h, c, weights)
    states = (h.unsqueeze(0), None if c is None else c.unsqueeze(0))
    _check.scan_arguments(cell, x.unsqueeze(0), *states, weights, False)
    tensors = {"x": x, "h": h, "c": c, **{f"weights[{i}]": w for i, w in enumerate(weights)}}
    if not _use_kernel(impl, _reasons(tensors)):
        return reference.step(cell, x, h, c, weights)
    _check_stored(tensors)
    return _scan.step_through_operator(cell, x, h, c, weights)


def _zero_states(cell, x, c_0, weights, batch_first):
    if c_0 is not None:
        raise ValueError("c_0 is given and h_0 is not")
    if len(weights) < 2 or x.dim() != 3:
        raise RuntimeError(f"expected x with 3 dimensions and 2, 4 or 8 weights, got {x.dim()} and {len(weights)}")
    biased = len(weights) > 2 and weights[2].dim() == 1
    D = len(weights) // (4 if biased else 2)
    zeros = x.new_zeros(D, x.shape[0 if batch_first else 1], weights[1].shape[-1])
    return zeros, zeros if cell == "lstm" else None


def _ragged(x, h_0, c_0, batch_first, lengths, reset, reset_state, T):
    """What the operator takes of these, checked: nothing where none is given."""
    if lengths is None and reset is None and reset_state is None:
        return ()
    if reset_state is not None and len(reset_state) != 2:
        raise ValueError(f"reset_state must be a pair (h, c), got {len(reset_state)} values")
    ragged = (lengths, reset, *(reset_state or (None, None)))
    _check.ragged_arguments(x, h_0, c_0, batch_first, *ragged)
    if lengths is not None and not torch.compiler.is_compiling() and lengths.numel():
        least, most = int(lengths.min()), int(lengths.max())
        if least < 0 or most > T:
            raise ValueError(f"lengths must be from 0 to {T}, got {least} to {most}")
    return ragged


def _reasons(tensors):
    """Why no kernel can read these tensors here and now: a list, empty where one can."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    device = next(iter(given.values())).device
    found = [_check.thread_reason(device), *(_check.tensor_reason(n, t) for n, t in given.items())]
    return [reason for reason in found if reason is not None]


def _check_stored(tensors):
    """Raises RuntimeError for a plain tensor whose storage has been freed or shrunk under it."""
    if _check.plain_thread():
        _check.stored(*((n, t) for n, t in tensors.items() if t is not None and _check.plain(t.dtype, t)))


def _use_kernel(impl, reasons):
    if impl not in ("auto", "kernel", "reference"):
        raise ValueError(f"impl must be 'auto', 'kernel' or 'reference', got {impl!r}")
    if impl == "kernel" and reasons:
        raise NotImplementedError("impl='kernel' cannot run this call: " + "; ".join(reasons))
    return impl != "reference" and not reasons


def attention_reasons(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False):
    """Why no kernel serves this call of scaled_dot_product_attention: a list, empty where one does."""
    tensors = {"query": query, "key": key, "value": value}
    reasons = _reasons(tensors)
    given = [t for t in (query, key, value, attn_mask) if t is not None]
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    head_size = max(t.shape[-1] if t.dim() else 1 for t in (query, value))
    reason = _attention.kernel_reason(query.device, head_size, needs_gradient, attn_mask)
    reasons += [] if reason is None else [reason]
    if not 0 <= dropout_p <= 1:
        reasons.append("dropout_p is refused by torch")
    if is_causal and attn_mask is not None:
        reasons.append("attn_mask and is_causal are both given, which torch refuses")
    if not reasons and not _shapes_served(query, key, value, attn_mask, enable_gqa):
        shapes = ", ".join(str(list(t.shape)) for t in given)
        reasons.append(f"sizes, or the mask's dtype or device, are refused by torch or broadcast by it: {shapes}")
    return reasons


def _shapes_served(query, key, value, mask, enable_gqa):
    if not (query.dim() == key.dim() == value.dim() in (3, 4) and query.dtype == key.dtype == value.dtype):
        return False
    (*batch, T, D), (*key_batch, S, key_D) = query.shape, key.shape
    if key_D != D or D == 0 or value.shape[:-1] != key.shape[:-1] or key_batch[:-1] != batch[:-1]:
        return False
    heads, key_heads = batch[-1], key_batch[-1]
    if heads != key_heads and not (enable_gqa and key_heads and heads % key_heads == 0 and query.dim() == 4):
        return False
    if mask is None:
        return True
    mask_ok = mask.dtype in (torch.bool, query.dtype) and mask.layout is torch.strided and mask.device == query.device
    return mask_ok and mask.dim() >= 2 and _attention.mask_fits(mask.shape, (*batch, T, S))


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    *,
    impl="auto",
):
    """softmax(Q K^T * scale + mask) V, with torch.nn.functional.scaled_dot_product_attention's signature and meaning.

    Args:
        query: (B, N, T, D) or (N, T, D); key (B, M, S, D); value (B, M, S, E); N = M, or with enable_gqa a multiple
        of M.
        attn_mask: bool (true: may be attended) or query's dtype (added), broadcastable to (B, N, T, S).
        dropout_p, is_causal, scale: as torch's. A query that may attend to no key gets zero. Where kernels or the
        reference drop weights, a seed from torch's generator says which (`seqkernels.dropout`), the same for both.

    Returns (B, N, T, E). "auto" and no kernel: torch's own function, with its errors. Raises NotImplementedError for
    impl="kernel" where no kernel serves the call.
    """
    if impl == "auto" and attn_mask is None and not dropout_p and not is_causal and not is_dynamo_compiling():
        out = _attention.again(query, key, value, scale, enable_gqa)
        if out is not None:
            return out
    if impl == "auto" and attn_mask is None and not dropout_p and _is_short(query, key, value, enable_gqa):
        _check.stored(("query", query), ("key", key), ("value", value))
        return _attention.direct(query, key, value, None, is_causal, scale)
    if key.dim() > 1 and value.dim() > 1 and key.shape[-2] != value.shape[-2]:  # which torch reads past the end for
        raise RuntimeError(f"Expected key and value to have the same length, got {key.shape[-2]} and {value.shape[-2]}")
    query, key, value, attn_mask = lowered(query.device, query, key, value, attn_mask)
    reasons = attention_reasons(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if not _use_kernel(impl, reasons):
        run = reference.scaled_dot_product_attention if impl == "reference" else F.scaled_dot_product_attention
        return run(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    batched = query.dim() == 4
    mask = attn_mask if batched or attn_mask is None or attn_mask.dim() < 3 else attn_mask.unsqueeze(0)
    q, k, v = (query, key, value) if batched else (query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0))
    out = _attention.run(q, k, v, mask, is_causal, scale, dropout_p)
    return out if batched else out.squeeze(0)


def _is_short(query, key, value, enable_gqa):
    """True for a call that the driver can take as it is: plain tensors (B, N, T, D), no mask, no gradient to record."""
    dtype = query.dtype
    if dtype not in DTYPES["cpu"] or not _check.plain_thread() or not _check.plain(dtype, query, key, value):
        return False
    if torch.is_grad_enabled() and torch._C._any_requires_grad(query, key, value):
        return False
    shape, key_shape = query.shape, key.shape
    if len(shape) != 4 or len(key_shape) != 4 or shape[0] != key_shape[0] or not shape[3] == key_shape[3] != 0:
        return False
    grouped = enable_gqa and key_shape[1] and shape[1] % key_shape[1] == 0
    return (shape[1] == key_shape[1] or grouped) and value.dim() == 4 and value.shape[:3] == key_shape[:3]
