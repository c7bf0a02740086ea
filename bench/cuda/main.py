"""The run: asks a worker for one row after the other, most important first, within a budget, and keeps each at once."""

import importlib.util
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import asdict

from ..records import Records
from . import summary
from .row import without_folders

SECONDS = 480.0
START_SECONDS, ROW_SECONDS, END_SECONDS = 120.0, 60.0, 20.0
MOST_HUNG = 2  # rows of a stage, before its others are left out
MODULE = "seqkernels.bench.cuda.worker"


class Died(Exception):
    """A worker ended without a reply; the message is the end of what it said."""


class Hung(Exception):
    """A worker gave no reply in time."""


class Worker:
    """A process that measures rows. `ask` gives it one and returns its reply; `end` ends it, whatever it is doing."""

    def __init__(self, command):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._process = subprocess.Popen(command, text=True, errors="replace", **pipes)
        self._replies, self._said = queue.SimpleQueue(), deque(maxlen=20)
        self._listeners = [threading.Thread(target=f, daemon=True) for f in (self._listen, self._keep)]
        for listener in self._listeners:
            listener.start()

    def _keep(self):
        self._said.extend(self._process.stderr)

    def _listen(self):
        for line in self._process.stdout:
            if line.endswith("\n"):  # else it was killed while it wrote
                self._replies.put(json.loads(line))
        self._replies.put(None)

    def hear(self, seconds):
        """The next reply; raises Hung or Died."""
        try:
            reply = self._replies.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise Hung from None
        if reply is None:
            self._process.wait()
            self._listeners[1].join()
            said = without_folders("".join(self._said).strip())[-1500:]
            raise Died(f"exit status {self._process.returncode}: {said}")
        return reply

    def ask(self, row, seconds):
        """The record of a row; raises Hung or Died."""
        with suppress(BrokenPipeError):  # `hear` says how it died
            self._process.stdin.write(json.dumps(asdict(row)) + "\n")
            self._process.stdin.flush()
        return self.hear(seconds)

    def end(self):
        """Kills the process and waits for it, but not for a driver that does not let go of it."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
            for listener in self._listeners:
                listener.join()


class Run:
    """What a run has done so far. command: starts a worker; rows: to be measured; out: a folder; say: prints a line."""

    def __init__(self, command, rows, out, seconds, say):
        self.command, self.rows, self.say = command, rows, say
        self.stop = time.monotonic() + seconds
        self.out, self.records, self.worker = out, None, None
        self.hung = {}

    def left(self):
        """Seconds of the budget."""
        return self.stop - time.monotonic()

    def start(self):
        """Starts a worker. The first one's fingerprint begins the records."""
        begin = time.monotonic()
        self.worker = Worker(self.command)
        fingerprint = self.worker.hear(START_SECONDS)["fingerprint"]
        if self.records is None:
            self.records = Records(self.out, {"fingerprint": fingerprint}, f"{slug(fingerprint['device'])}.jsonl")
        self.records.add("start", "worker", seconds=round(time.monotonic() - begin, 2))

    def end(self):
        """Ends the worker, if there is one."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None

    def measure(self):
        """Measures what is not recorded yet, while the budget lasts."""
        self.start()
        done = {item["key"] for item in self.records.find("row")}
        for row in self.rows:
            if row.key in done or self.hung.get(row.stage, 0) >= MOST_HUNG:
                continue
            if self.left() <= 0:
                break
            if self.worker is None:
                self.start()
            self._measure(row)

    def _measure(self, row):
        allowed, begin = min(ROW_SECONDS, self.left()), time.monotonic()
        try:
            record = self.worker.ask(row, allowed)
        except Died as error:
            record = {"status": "failed", "reason": str(error), "restart": True}
        except Hung:
            if allowed < ROW_SECONDS:
                return  # the budget ended, not the row's time
            record = {"status": "hung", "reason": f"no result within {ROW_SECONDS:g} s", "restart": True}
            self.hung[row.stage] = self.hung.get(row.stage, 0) + 1
        if record.pop("restart", False):
            self.end()
        self.records.add("row", row.key, stage=row.stage, took=round(time.monotonic() - begin, 2), **record)
        self.say(summary.line(self.records.items[-1]))


def slug(name):
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@contextmanager
def _terminations():
    """A request to terminate ends the run as Ctrl-C does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def bench(stages=None, out="bench/results", seconds=None, device="cuda", smoke=False):
    """Runs `seqkernels bench --device cuda`; returns the exit status.

    stages: names of `table.MODULES`, or None for all. out: the folder of the records. seconds: the budget. device
    "cpu" and smoke, rows of tiny sizes, are for tests.
    """
    import torch

    from . import table

    if device == "cuda" and not torch.cuda.is_available():
        print("seqkernels bench: --device cuda needs a GPU that torch can use, and torch finds none", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("seqkernels bench: --device cuda needs triton: pip install 'seqkernels[gpu]'", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", MODULE, device, *["smoke"] * smoke]
    rows = [row for row in table.rows() if stages is None or row.stage in stages]
    return carry_out(Run(command, rows, out, seconds or SECONDS, lambda line: print(line, flush=True)))


def carry_out(run):
    """Carries a run out and says what was left; returns the exit status."""
    interrupted = False
    with _terminations():
        try:
            run.measure()
        except KeyboardInterrupt:
            interrupted = True
        except (Died, Hung, OSError) as error:
            reason = str(error) or f"no worker started within {START_SECONDS:g} s"
            print(f"seqkernels bench: {reason}", file=sys.stderr)
            return 1
        finally:
            run.end()
    if run.records is not None:
        for line in summary.ending(run.rows, run.records):
            run.say(line)
        run.say(f"Results: {run.records.path}" + "; interrupted: the same command goes on from here" * interrupted)
    return 130 if interrupted else 0
