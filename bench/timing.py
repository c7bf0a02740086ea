"""Interleaved timing, and ratios with their intervals."""

import math
import time
from functools import cache

import numpy as np

MIN_ROUNDS, MAX_ROUNDS = 7, 201
SAMPLE_SECONDS = 2e-3
CONFIDENCE = 0.95


def wall(call, repeats):
    """Seconds a call by the clock on the wall, of `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleave(calls, seconds, sample=wall, repeats=None, most=MAX_ROUNDS):
    """Times every call in turn, round after round, in an order that reverses each round (AB, BA, ...).

    calls: functions without arguments. seconds: how long to go on; at least 7 rounds are made, and at most `most`.
    sample: (call, repeats) -> seconds a call. repeats: calls a sample, or None for as many as take about 2 ms.
    Returns one list per call of seconds a call, one figure a round, five digits of it.
    """
    counts = [_repeats(call, sample) if repeats is None else repeats for call in calls]
    rounds = [[] for _ in calls]
    order = list(range(len(calls)))
    stop = time.perf_counter() + seconds
    while len(rounds[0]) < MIN_ROUNDS or (time.perf_counter() < stop and len(rounds[0]) < most):
        for index in order:
            rounds[index].append(float(f"{sample(calls[index], counts[index]):.5g}"))
        order.reverse()
    return rounds


def _repeats(call, sample):
    """How many calls make a sample of about 2 ms; warms the call up on the way."""
    call()
    return max(1, int(SAMPLE_SECONDS / max(sample(call, 3), 1e-9)))


@cache
def _rank(count):
    """Which of `count` sorted values, from either end, bound their median with 95% confidence; 1 where none do."""
    tail, below = (1 - CONFIDENCE) / 2, 0
    for rank in range(count + 1):
        below += math.comb(count, rank)
        if below / 2**count >= tail:
            return max(1, rank)


def median_interval(values):
    """Median of the values and its 95% interval from order statistics (binomial, no assumption on the noise).

    Fewer than six values cannot carry such an interval: their extremes are given.
    """
    values = np.sort(np.asarray(values, float))
    rank = _rank(len(values))
    return float(np.median(values)), float(values[rank - 1]), float(values[-rank])


def ratio(ours, peer):
    """Peer's time / our time, paired by round: median, low, high. Above 1 we are faster."""
    return median_interval(np.asarray(peer) / np.asarray(ours))


def geometric_mean(pairs, resamples=2000, seed=0):
    """Geometric mean over rows of the ratio, with a 95% interval by bootstrap over the rounds of every row.

    pairs: (our rounds, the peer's rounds) per row.
    """
    random = np.random.default_rng(seed)
    total = np.zeros(resamples)
    centre = 0.0
    for ours, peer in pairs:
        logs = np.log(np.asarray(peer) / np.asarray(ours))
        total += np.median(logs[random.integers(0, len(logs), (resamples, len(logs)))], axis=1)
        centre += np.median(logs)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(total / len(pairs), [tail, 1 - tail])
    return float(np.exp(centre / len(pairs))), float(np.exp(low)), float(np.exp(high))


def holds(interval, target):
    """A figure (median, low, high) holds unless its interval lies wholly below the target."""
    return interval[2] >= target
