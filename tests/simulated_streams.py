"""CUDA's streams and events without CUDA: what is put into a stream is noted, and then done in a random order, one of
those that the streams and the events between them allow."""

import contextlib
import random
from functools import partial
from unittest import mock

import torch

from seqkernels.ops import tasks


class Event:
    done = False

    def happen(self):
        self.done = True


class Stream:
    """What `tasks.on_streams` uses of torch.cuda.Stream. To do: (event to wait for or None, function) in order."""

    def __init__(self, world, device):
        self.device, self.to_do = device, []
        world.streams.append(self)

    def record_event(self):
        event = Event()
        self.to_do.append((None, event.happen))
        return event

    def wait_event(self, event):
        self.to_do.append((event, lambda: None))

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class World:
    """Runs tasks as CUDA might, by `tasks.on_streams`: in the order that the seed chooses. `done` are then their places
    in the order in which they have run, between what the current stream did before and after.

    failing: the place of a task that a host cannot start: it raises RuntimeError.
    """

    def __init__(self, seed, failing=None):
        self._random, self._failing, self.streams, self.done = random.Random(seed), failing, [], []

    def run(self, planned, device):
        """In place of `tasks.run`."""
        self.note(planned, device)
        self.work()

    def note(self, planned, device):
        """What a host does."""
        self.current = current = Stream(self, device)
        self._note("before", lambda: None)
        try:
            with (
                mock.patch.object(torch.cuda, "current_stream", lambda device: self.current),
                mock.patch.object(torch.cuda, "Stream", partial(Stream, self)),
                mock.patch.object(torch.cuda, "stream", self._in),
            ):
                tasks.on_streams([self._noted(*pair) for pair in enumerate(planned)], device)
        finally:
            assert self.current is current
            self._note("after", lambda: None)

    def work(self):
        """What a device does."""
        while waiting := [stream for stream in self.streams if stream.to_do]:
            ready = [stream for stream in waiting if (event := stream.to_do[0][0]) is None or event.done]
            assert ready, "every stream waits"
            self._random.choice(ready).to_do.pop(0)[1]()

    def _noted(self, place, task):
        return task._replace(run=self._fail if place == self._failing else partial(self._note, place, task.run))

    def _fail(self):
        raise RuntimeError("cannot be started")

    @contextlib.contextmanager
    def _in(self, stream):
        outside, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = outside

    def _note(self, name, run):
        self.current.to_do.append((None, lambda: (self.done.append(name), run())))
