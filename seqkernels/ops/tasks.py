"""Work in several streams: what may run at the same time, and what waits for what."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch


class Task(NamedTuple):
    """Something to run in a stream, whose tasks follow each other in the order of the list that they are in. `after`
    are places in that list: tasks of other streams, further ahead, whose results it needs."""

    stream: int
    after: tuple[int, ...]
    run: Callable[[], None]


def run(tasks, device):
    """Runs the tasks of a list, which stands in an order that could be run as it is."""
    if device.type == "cuda":
        return on_streams(tasks, device)
    for task in tasks:
        task.run()


def on_streams(tasks, device):
    """Each stream beside the current one, which waits for all of them: a fork and a join that can be captured in a
    graph.

    Memory that tasks share is to be allocated before, and kept until this returns: then the current stream, which it
    belongs to, is also the last one to use it.
    """
    current = torch.cuda.current_stream(device)
    streams = _beside(current, 1 + max(task.stream for task in tasks))
    needed, done = {place for task in tasks for place in task.after}, {}
    for stream in streams:
        stream.wait_stream(current)
    try:
        for place, task in enumerate(tasks):
            stream = streams[task.stream]
            for other in task.after:
                stream.wait_event(done[other])
            with torch.cuda.stream(stream):
                task.run()
            if place in needed:
                done[place] = stream.record_event()
    finally:
        for stream in streams:
            current.wait_stream(stream)


@lru_cache(maxsize=32)
def _beside(current, count):
    """The same ones for the same stream, so that the allocator finds again what it keeps for each, and no others, so
    that a capture meets no stranger's work."""
    return [torch.cuda.Stream(current.device) for _ in range(count)]
