"""Threads that take the steps of one scan together (kernels/cpu/crew.py), where its rows are too few to be split."""

from functools import partial

import numpy as np

from . import threads
from .compiled import compiled

_STEP_BYTES = 1 << 18  # recurrent weights: reading less a step takes no longer than a few meetings
_MOMENT = 200_000  # nanoseconds, about twice what it takes to hand work to a thread
_PATIENCE = 1_000_000  # nanoseconds, beside the step's own time at a byte a nanosecond


def members(B, shape, H):
    """How many threads may share the steps of a batch of B rows: 1 where that does not pay."""
    if compiled().few_rows <= B or _step_bytes(shape, H) < _STEP_BYTES:
        return 1
    return min(shape.slabs(H) // 2, compiled().crew.MOST)


def patience(shape, H):
    """Nanoseconds that a thread may be late."""
    return _PATIENCE + _step_bytes(shape, H)


def _step_bytes(shape, H):
    return shape.size * shape.gates * H * H


def run(kernel, wanted, patience):
    """kernel(crew, leads) by `wanted` threads, this one leading, or by fewer where they do not come."""
    crew = compiled().crew
    memory = np.zeros((crew.WORDS, crew.WORD // 8), np.int64)
    memory[:3, 0] = wanted, _MOMENT, patience
    address = memory.ctypes.data

    def dismiss():
        memory[crew.GO, 0] = crew.DISMISSED

    threads.run_led(partial(kernel, address, 1), [partial(kernel, address, 0)] * (wanted - 1), dismiss)
