"""Tensors whose storage has been freed or shrunk under them: an error that names the argument, no crash."""

import pytest
import torch

from seqkernels import functional, nn

I, H = 3, 4


def z(*shape):
    return torch.zeros(shape)


def spoilt(x, size):
    """A view like x, of its strides, whose storage has been resized to `size` bytes."""
    x = x.new_empty_strided(x.shape, x.stride(), requires_grad=False).zero_()
    x.untyped_storage().resize_(size)
    return x


@pytest.mark.parametrize("size", (0, 4))
def test_resized_storage_does_not_crash(size):
    """torch's attention raises; its recurrent modules read past the end."""
    q, mask = z(1, 2, 3, 4), z(1, 1, 3, 3)
    attention = functional.scaled_dot_product_attention
    x, h, weights = z(3, 2, I), z(1, 2, H), [z(H, I), z(H, H)]
    for layout in (lambda t: t, lambda t: t.transpose(-2, -1).contiguous().transpose(-2, -1)):
        q, mask, x, h = layout(q), layout(mask), layout(x), layout(h)
        for i, name in enumerate(("query", "key", "value", "attn_mask")):
            given = [q, q, q, mask]
            given[i] = spoilt(given[i], size)
            for call in (attention, lambda *a: torch.ops.seqkernels.attention(*a, False, None)):
                with pytest.raises(RuntimeError, match=f"{name} needs .* has {size}"):
                    call(*given)
        for i, name in enumerate(("x", "h_0")):
            given = [x, h]
            given[i] = spoilt(given[i], size)
            with pytest.raises(RuntimeError, match=f"{name} needs"):
                functional.scan("rnn_tanh", *given, None, weights)
    with pytest.raises(RuntimeError, match=r"weights\[1\] needs"):
        functional.scan("rnn_tanh", x, h, None, [weights[0], spoilt(weights[1], size)])
    with pytest.raises(RuntimeError, match=r"weights\[0\] needs"):
        functional.step("rnn_tanh", x[0], h[0], None, [spoilt(weights[0], size), weights[1]])
    attention, x = nn.MultiheadAttention(4, 2), z(3, 2, 4)
    with torch.no_grad(), pytest.raises(RuntimeError, match="attn_mask needs"):
        attention(x, x, x, None, False, spoilt(z(3, 3), size))
