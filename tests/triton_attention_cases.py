"""What the tests of attention's Triton kernels share: dtypes, blocks, the way to the device and back."""

import torch
from bfloat16_interpreter import repair
from device import INTERPRETED, back, there
from seqkernels.kernels.gpu.attention_configs import Config

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
