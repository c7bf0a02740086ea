"""Attention over sequences and of one query over a cache, against every backend of torch's."""

import itertools
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import library, problems, providers
from ..cases import Case
from . import contest
from .scan import row

WIDTH, TOKENS = 2048, 16384  # N D, and B T of sequences
LENGTHS = (2048, 8192, 512, 4096, 1024)
KEYS = {16: (16384, 65536, 4096, 1024), 1: (131072, 16384, 65536, 4096, 1024)}
HEADS, SIZE = 8, 128  # N and D of a cache
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
LONGEST_MATH = 1024  # it keeps all scores in memory
SECONDS = 0.3


def rows():
    """Forward and backward by length, head size and mask; a cache by keys and batch."""
    for (i, T), (j, D), causal in itertools.product(enumerate(LENGTHS), enumerate((128, 64)), (True, False)):
        for mode in ("forward", "backward"):
            case = Case("attention", mode, T, max(1, TOKENS // T), N=WIDTH // D, D=D, causal=causal)
            yield row("attention", case, "bfloat16", 2 + i + j + (not causal))
    for B, lengths in KEYS.items():
        for i, T in enumerate(lengths):
            yield row("decode", Case("decode", "forward", T, B, N=HEADS, D=SIZE), "bfloat16", 2 + i)


def smoke(row):
    """The same row at a size that is measured in a moment."""
    return {**row.arguments, "case": Case(**row.arguments["case"]).smoke().as_dict(), "seconds": 0}


def measure(device, case, precision, seconds=SECONDS):
    """The record of a contest, with the operations of a sequence or the bytes of a cache.

    The keys of one query are read from memory: the second cache is filled with other data before every call. Results
    are checked in the first head of the first sequence and the last of the last.
    """
    case = Case(**case)
    problem = problems.make(case, device=device.device)
    cold = case.operation == "decode"
    ours, peers = members(problem)
    timed = {"sample": device.cold, "repeats": 5} if cold else {"sample": device.sample}
    with problems.grad_mode(case):
        truth = [providers.reference(_corner(problem, end)) for end in (False, True)]
        truth = [pair[k] for k in range(len(truth[0])) for pair in truth]
        record = contest.hold(
            device, ours, peers, truth, "default", case.dtype, precision, seconds, pick=_picked, **timed
        )
    amount = {"bytes": size(problem)} if cold else {"operations": operations(case)}
    return {"case": case.as_dict(), "precision": precision, "cache": "cold" if cold else "warm", **amount, **record}


def members(problem):
    """{name: builder} of ours and of torch's backends; "default" is the one that torch chooses."""
    kernel = library.Library("ours", None, partial(library.ours().attention, impl="kernel"))
    ours = {"seqkernels": lambda: problems.call(kernel, problem)}
    peers = {"default": lambda: problems.call(library.native(), problem)}
    for name, backend in BACKENDS.items():
        if name != "math" or problem.case.T <= LONGEST_MATH:
            forced = library.Library(name, None, partial(_forced, backend))
            peers[name] = lambda forced=forced: problems.call(forced, problem)
    return ours, peers


def _forced(backend, *tensors, is_causal):
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)


def _end(x, end):
    return x[-1:, -1:] if end else x[:1, :1]


def _corner(problem, end):
    """One head of the problem: the last of the last sequence, or the first of the first."""
    dy = None if problem.dy is None else _end(problem.dy, end)
    return problems.Problem(problem.case, tuple(_end(x, end) for x in problem.inputs), dy=dy)


def _picked(results):
    return [_end(x, end) for x in results for end in (False, True)]


def operations(case):
    """Of the products: two in the forward, five in the backward; half of them where half is hidden."""
    products = 2 if case.mode == "forward" else 5
    return products * 2 * case.B * case.N * case.T**2 * case.D // (1 + case.causal)


def size(problem):
    """Bytes of keys and values."""
    return sum(x.numel() * x.element_size() for x in problem.inputs[1:])
