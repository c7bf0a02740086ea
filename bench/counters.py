"""Exact counters of a call: what noise does not move."""

import os
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from . import library

CALLS = 4


def packs():
    """Times that weights were packed by this process so far."""
    from seqkernels.ops import scan_cpu

    return scan_cpu.pack_count()


@contextmanager
def _quiet():
    """Keeps the profiler's native log lines off the terminal: they ignore its own log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _walk(nodes):
    for node in nodes:
        yield node
        yield from _walk(node.children)


def memory_and_operators(call, calls=CALLS):
    """torch's allocations, their bytes, and the operators called from Python, each a call.

    call: a function without arguments, warm already. Frees are not counted. Exact where every call is alike.
    """
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(calls):
            call()
    roots = profiler.profiler.kineto_results.experimental_event_tree()
    sizes = [node.extra_fields.alloc_size for node in _walk(roots) if node.name == "[memory]"]
    gained = [size for size in sizes if size > 0]
    operators = sum(1 for node in roots if node.tag.name == "TorchOp")
    return {"allocations": len(gained) / calls, "bytes": sum(gained) / calls, "operators": operators / calls}


def nodes(module, *inputs):
    """Nodes of the graph that torch.compile(fullgraph=True) makes of a module's call in inference, when its operators
    are taken apart."""
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=keep))(*inputs)
    torch._dynamo.reset()
    return sum(len(graph.graph.nodes) for graph in graphs)


def count(call, warm=2):
    """All counters of a call, as plain data.

    allocations, bytes, operators: a call, after `warm` calls. packs: packings of weights a call, after them as well.
    specialisations: kernels that this process loaded or compiled since the call was first made.
    """
    kernels = library.specialisations()
    for _ in range(warm):
        call()
    kernels = library.specialisations() - kernels
    packed = packs()
    for _ in range(CALLS):
        call()
    packed = (packs() - packed) / CALLS
    return {**memory_and_operators(call), "packs": packed, "specialisations": kernels}
