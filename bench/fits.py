"""Exponents and crossovers of curves of cost against position, with 95% intervals by bootstrap over the samples."""

import numpy as np

ASYMPTOTIC_FACTOR = 16
RESAMPLES = 1000
TAIL = 0.025


def _medians(curve, random=None):
    """curve: {position: samples} -> log positions, log medians; of resampled samples where `random` is given."""
    positions = sorted(curve)
    chosen = [np.asarray(curve[p]) for p in positions]
    if random is not None:
        chosen = [samples[random.integers(0, len(samples), len(samples))] for samples in chosen]
    return np.log(positions), np.log([np.median(samples) for samples in chosen])


def asymptotic(curve):
    """The part of a curve within a factor of 16 of its last position."""
    return {p: samples for p, samples in curve.items() if p * ASYMPTOTIC_FACTOR >= max(curve)}


def exponent(curve, whole=False):
    """Slope of log cost against log position by least squares: value, low, high.

    curve: {position: samples of the cost}. whole: fit every position and not the asymptotic part alone.
    None with fewer than three positions.
    """
    part = curve if whole else asymptotic(curve)
    if len(part) < 3:
        return None
    random = np.random.default_rng(0)
    slopes = [np.polyfit(*_medians(part, random), 1)[0] for _ in range(RESAMPLES)]
    low, high = np.quantile(slopes, [TAIL, 1 - TAIL])
    return float(np.polyfit(*_medians(part), 1)[0]), float(low), float(high)


def _crossing(log_positions, difference):
    """First position from which on `difference` is above 0: 0 if it always is, inf if it is not at the end."""
    below = np.flatnonzero(difference <= 0)
    if not len(below):
        return 0.0
    last = below[-1]
    if last == len(difference) - 1:
        return float("inf")
    share = -difference[last] / (difference[last + 1] - difference[last])
    return float(np.exp(log_positions[last] + share * (log_positions[last + 1] - log_positions[last])))


def crossover(growing, flat):
    """The position from which on `growing` costs more than `flat`: value, low, high, interpolated in log-log.

    Both curves are {position: samples}. 0 stands for "from the first position on", inf for "not within the positions".
    """
    shared = growing.keys() & flat.keys()
    growing, flat = ({p: curve[p] for p in shared} for curve in (growing, flat))
    random = np.random.default_rng(0)

    def once(random=None):
        log_positions, costs = _medians(growing, random)
        return _crossing(log_positions, costs - _medians(flat, random)[1])

    found = sorted(once(random) for _ in range(RESAMPLES))
    return once(), found[int(TAIL * RESAMPLES)], found[int((1 - TAIL) * RESAMPLES) - 1]
