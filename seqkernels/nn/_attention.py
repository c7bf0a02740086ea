"""MultiheadAttention in the place of torch.nn's, on this package's kernels."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _check
from ..ops import attention as _ops


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention on this package's kernels. Arguments, attributes and results are torch's.

    Served: masks, key_padding_mask, is_causal, batch_first, unbatched input, kdim and vdim, gradients and dropout.
    Without gradients and dropout also need_weights=True, whose weights are computed apart from the kernel, as a
    (B, N, T, S) matrix, averaged or per head.
    Without weights a query that may attend to no key gets 0 before the output projection, in every mode. torch has 0
    there too, but NaN on the fast path of its eval mode (no gradient, batch_first, need_weights=False, a mask). With
    need_weights=True it is NaN, weights and output, as torch's.
    Everything else runs as torch's own module; `seqkernels.explain(module, *inputs)` says why.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ):
        """As torch.nn's forward: (output, weights), weights None without need_weights."""
        given = (query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        if self.fallback_reason(*given) is not None:
            return super().forward(*given)
        batched = query.dim() == 3
        batch_first = self.batch_first or not batched
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = self._heads(query, key, value, batch_first)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._merged(attn_mask, key_padding_mask, q)
        out = _ops.run(q, k, v, mask, causal, None, self._active_dropout)
        weights = None
        if need_weights:
            weights = self._attention_weights(q, k, mask)
            if mask is not None:
                # A query that sees no key: zero by the kernel, NaN in torch wherever the weights are computed.
                out = torch.where(weights[..., :1].isnan(), weights[..., :1], out)
            weights = weights.mean(1) if average_attn_weights else weights
        out = out.transpose(1, 2) if batch_first else out.permute(2, 0, 1, 3)
        out = F.linear(out.flatten(2), self.out_proj.weight, self.out_proj.bias)
        if not batched:
            out, weights = out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out, weights

    def fallback_reason(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ) -> str | None:
        """Why a call does not run on the kernels, or None. What torch refuses is left to torch, and to its message."""
        if not all(isinstance(t, Tensor) for t in (query, key, value)):
            return _check.REFUSED
        if not all(m is None or isinstance(m, Tensor) for m in (key_padding_mask, attn_mask)):
            return _check.REFUSED
        reason = _check.thread_reason(query.device)
        if reason is not None:
            return reason
        if self.bias_k is not None or self.add_zero_attn:
            return "add_bias_kv or add_zero_attn is set"
        lowered = _check.autocast_dtype(query.device) is not None
        parameters = self._projections()
        named = {"query": query, "key": key, "value": value, **parameters}
        for name, tensor in named.items():
            reason = _check.tensor_reason(name, tensor)
            if reason is not None:
                return reason
            if tensor.dtype != query.dtype and not lowered or tensor.device != query.device:
                return f"{name} is {tensor.dtype} on {tensor.device}: not query's dtype or device"
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in named.values())
        if need_weights and (gradient or self._active_dropout):
            return "need_weights with a gradient or dropout: torch writes the weights out for both anyway"
        reason = _ops.kernel_reason(query.device, self.head_dim, gradient)
        if reason is not None:
            return reason
        if is_causal and attn_mask is None:
            return "is_causal without attn_mask is refused by torch"
        if not self._sizes_fit(query, key, value):
            return "empty, or sizes are refused by torch"
        return self._mask_reason(query, key, key_padding_mask, attn_mask)

    @property
    def _active_dropout(self):
        return self.dropout if self.training else 0.0

    def _sizes_fit(self, query, key, value):
        if not (query.dim() == key.dim() == value.dim() in (2, 3)):
            return False
        widths = (query.shape[-1], key.shape[-1], value.shape[-1])
        batch = 0 if self.batch_first else 1
        fits = widths == (self.embed_dim, self.kdim, self.vdim) and key.shape[:-1] == value.shape[:-1]
        if query.dim() == 3:
            fits = fits and query.shape[batch] == key.shape[batch]
        return fits and query.numel() > 0 and key.numel() > 0

    def _mask_reason(self, query, key, key_padding_mask, attn_mask):
        masks = [m for m in (key_padding_mask, attn_mask) if m is not None]
        if any(m.dtype not in (torch.bool, query.dtype) for m in masks) or len({m.dtype for m in masks}) > 1:
            return "a mask is neither bool nor query's dtype, or the masks are of two dtypes"
        if any(m.layout is not torch.strided or m.device != query.device or m.requires_grad for m in masks):
            return "a mask is not a dense tensor on query's device without a gradient"
        batched = query.dim() == 3
        time = 1 if batched and self.batch_first else 0
        T, S, B = query.shape[time], key.shape[time], query.shape[1 - time] if batched else 1
        if attn_mask is not None and attn_mask.shape not in ((T, S), (B * self.num_heads, T, S)):
            return "attn_mask's size is refused by torch"
        if key_padding_mask is not None and key_padding_mask.shape != ((B, S) if batched else (S,)):
            return "key_padding_mask's size is refused by torch"
        return None

    def _projections(self):
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight", "in_proj_bias")
        found = {name: getattr(self, name) for name in names}
        found |= {"out_proj.weight": self.out_proj.weight, "out_proj.bias": self.out_proj.bias}
        return {name: p for name, p in found.items() if p is not None}

    def _heads(self, query, key, value, batch_first):
        """q (B, N, T, D), k and v (B, N, S, D), views of the projections."""
        if self._qkv_same_embed_dim and query is key and key is value:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self._qkv_same_embed_dim:
                weights = self.in_proj_weight.chunk(3)
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            projected = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases)]
        heads = [x.unflatten(-1, (self.num_heads, self.head_dim)) for x in projected]
        return [x.transpose(1, 2) if batch_first else x.permute(1, 2, 0, 3) for x in heads]

    def _merged(self, attn_mask, key_padding_mask, q):
        """One mask in scaled_dot_product_attention's sense, broadcastable to (B, N, T, S), or None."""
        B = q.shape[0]
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (B, self.num_heads))
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask[:, None, None, :]
        masks = [m for m in (attn_mask, key_padding_mask) if m is not None]
        if not masks:
            return None
        merged = masks[0]
        if len(masks) == 2:
            merged = masks[0] | masks[1] if merged.dtype == torch.bool else masks[0] + masks[1]
        return ~merged if merged.dtype == torch.bool else merged

    def _attention_weights(self, q, k, mask):
        scores = (q * (1 / math.sqrt(self.head_dim))) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return torch.softmax(scores, -1)
