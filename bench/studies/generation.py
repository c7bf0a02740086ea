"""Study (b): time and bytes of state of one more token, at positions 16 to 16,384."""

import math
import time

import torch

from ..runners import RecomputeRunner, StreamRunner, runners

POSITIONS = tuple(16 * 2**k for k in range(11))
LIMIT_SECONDS = 5.0
SAMPLES, MIN_SAMPLES, BUDGET_SECONDS = 31, 3, 2.0


def measure(runners, token, position):
    """Seconds a step of every runner at a position, interleaved, at least 3 samples each: {name: [seconds, ...]}.

    A sample is a burst of steps, after another burst that brings the runner's weights back into the caches that the
    others used: one step does not where the third cache takes in only what has been used twice.
    """
    samples = {name: [] for name in runners}
    start = time.perf_counter()
    for index in range(SAMPLES):
        for name, runner in runners.items():
            runner.back_to(position)
            if runner.burst > 1:
                _burst(runner, token)
            begin = time.perf_counter()
            _burst(runner, token)
            samples[name].append((time.perf_counter() - begin) / runner.burst)
        if index + 1 >= MIN_SAMPLES and time.perf_counter() - start > BUDGET_SECONDS:
            break
    return samples


def _burst(runner, token):
    for _ in range(runner.burst):
        runner.step(token)


def expected_seconds(points, position):
    """What one token will take at a position, from the last two (position, seconds) of a curve in log-log."""
    if len(points) < 2:
        return 0.0
    (p, before), (q, now) = points[-2:]
    slope = math.log(now / before) / math.log(q / p)
    return now * (position / q) ** max(0.0, slope)


def state_bytes(runner):
    """Bytes of the tensors that the runner carries."""
    return sum(tensor.numel() * tensor.element_size() for tensor in runner.state())


@torch.no_grad()
def run(records, data, last, progress):
    """Measures positions up to `last` that the records do not hold: kind "generation", one record a position.

    A curve stops where one token would take over five seconds: kind "generation_stop".
    """
    positions = [position for position in POSITIONS if position <= last]
    task = progress.add_task("generation", total=len(positions))
    tokens = torch.cat([data[0][: positions[-1] + 1]] * (1 + positions[-1] // len(data[0]))).long()
    alive, at, seen = runners(), {}, {}
    for position in positions:
        done = records.find("generation", position)
        if not done:
            for name in list(alive):
                seconds = expected_seconds(seen.get(name, []), position)
                if seconds > LIMIT_SECONDS:
                    records.drop("generation_stop", name)
                    records.add("generation_stop", name, position=position, seconds=seconds)
                    del alive[name]
            records.add("generation", position, curves=_at_position(alive, at, tokens, position))
            done = records.find("generation", position)
        for name, curve in done[0]["curves"].items():
            seen.setdefault(name, []).append((position, min(curve["seconds"])))
        progress.update(task, advance=1)


def _at_position(alive, at, tokens, position):
    """Takes every runner to `position` and measures its next tokens."""
    token = tokens[position : position + 1]
    curves = {}
    for name, runner in alive.items():
        streams = isinstance(runner, StreamRunner)
        runner.advance(tokens[at.get(name, 0) if streams else 0 : position])
        at[name] = position
        curves[name] = {"bytes": state_bytes(runner), "formula": runner.formula(position)}
    quick = {name: runner for name, runner in alive.items() if not isinstance(runner, RecomputeRunner)}
    slow = {name: runner for name, runner in alive.items() if name not in quick}
    for group in (quick, slow):
        for name, seconds in measure(group, token, position).items():
            curves[name]["seconds"] = seconds
    return curves
