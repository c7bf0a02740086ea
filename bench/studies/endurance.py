"""Study (b), continued: is a stream's token as cheap after a million steps as after a hundred?

Seconds a step at positions 10^2 to 10^6, resident memory beside them; then what a step leaves behind: Python's memory
by tracemalloc and torch's allocations by the profiler, both after the first step.
"""

import gc
import os
import time
import tracemalloc

import torch

from .. import counters, library

H = 128
POSITIONS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
SAMPLES, STEPS_A_SAMPLE = 15, 6
TRACED_STEPS = 2_000


def resident_bytes():
    """Resident memory of this process, or None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return None


def stream_step():
    """A function that makes one step of a stream over an LSTM with I = H = 128 at B = 1."""
    source = library.ours()
    torch.manual_seed(0)
    stream = source.stream(source.nn.LSTM(H, H).eval())
    x = torch.randn(1, H)

    def step():
        stream(x)

    return step


def walk(step, last, on_position):
    """Steps on to `last`; at each position calls on_position(position, samples of seconds a step, resident bytes)."""
    at = 0
    for position in (p for p in POSITIONS if p <= last):
        for _ in range(position - SAMPLES * STEPS_A_SAMPLE - at):
            step()
        samples = []
        for _ in range(SAMPLES):
            start = time.perf_counter()
            for _ in range(STEPS_A_SAMPLE):
                step()
            samples.append((time.perf_counter() - start) / STEPS_A_SAMPLE)
        at = position
        on_position(position, samples, resident_bytes())


def left_behind(step, steps=TRACED_STEPS):
    """Net growth of Python's traced memory over `steps` steps in bytes, and torch's allocations a step."""
    step()
    tracemalloc.start()
    try:
        step()
        gc.collect()
        before = 0
        for _ in range(2):  # the second reading holds the 32 bytes of the first, as the last one will
            before = tracemalloc.get_traced_memory()[0]
        for _ in range(steps):
            step()
        gc.collect()
        growth = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return {"steps": steps, "traced_growth": growth, **counters.memory_and_operators(step, calls=64)}


@torch.no_grad()
def run(records, last, progress):
    """Walks to `last` steps where the records do not hold it: kinds "endurance" (a position each) and "left_behind"."""
    if records.find("left_behind"):
        return
    for item in records.find("endurance"):
        records.drop("endurance", item["key"])
    task = progress.add_task("a long stream", total=last)
    step = stream_step()

    def on_position(position, samples, resident):
        records.add("endurance", position, seconds=samples, resident=resident)
        progress.update(task, completed=position)

    walk(step, last, on_position)
    progress.stop()  # its own thread allocates
    try:
        records.add("left_behind", "stream", **left_behind(step))
    finally:
        progress.start()
