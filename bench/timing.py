"""Interleaved timing, and ratios with their intervals."""

import time

import numpy as np

MIN_ROUNDS, MAX_ROUNDS = 7, 201
SAMPLE_SECONDS = 2e-3
CONFIDENCE = 0.95


def interleave(calls, seconds):
    """Times every call in turn, round after round, in an order that reverses each round (AB, BA, ...).

    calls: functions without arguments. seconds: how long to go on; at least 7 rounds are made.
    Returns one list per call of seconds a call, one figure a round, five digits of it. Short calls are repeated within
    a sample.
    """
    repeats = [_repeats(call) for call in calls]
    rounds = [[] for _ in calls]
    order = list(range(len(calls)))
    stop = time.perf_counter() + seconds
    while len(rounds[0]) < MIN_ROUNDS or (time.perf_counter() < stop and len(rounds[0]) < MAX_ROUNDS):
        for index in order:
            rounds[index].append(float(f"{_sample(calls[index], repeats[index]):.5g}"))
        order.reverse()
    return rounds


def _sample(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _repeats(call):
    """How many calls make a sample of about 2 ms; warms the call up on the way."""
    call()
    return max(1, int(SAMPLE_SECONDS / max(_sample(call, 3), 1e-9)))


def median_interval(values):
    """Median of the values and its 95% interval from order statistics (binomial, no assumption on the noise).

    Fewer than six values cannot carry such an interval: their extremes are given.
    """
    from scipy.stats import quantile_test

    values = np.asarray(values, float)
    interval = quantile_test(values, q=np.median(values), p=0.5).confidence_interval(CONFIDENCE)
    low = interval.low if np.isfinite(interval.low) else values.min()
    high = interval.high if np.isfinite(interval.high) else values.max()
    return float(np.median(values)), float(low), float(high)


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
