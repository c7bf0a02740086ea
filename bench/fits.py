"""Exponents and crossovers of curves of cost against position, with 95% intervals by bootstrap over the samples.

A curve is {position: samples of the cost}. P positions, R resamples.
"""

import numpy as np

ASYMPTOTIC_FACTOR = 8
RESAMPLES = 1000
TAIL = 0.025


def _logs(curve, seed=0):
    """Log positions (P,), log medians (P,), and log medians of resampled samples (R,P)."""
    random = np.random.default_rng(seed)
    positions = sorted(curve)
    samples = [np.asarray(curve[p]) for p in positions]
    drawn = [np.median(s[random.integers(0, len(s), (RESAMPLES, len(s)))], axis=1) for s in samples]
    return np.log(positions), np.log([np.median(s) for s in samples]), np.log(drawn).T


def asymptotic(curve):
    """The part of a curve within a factor of 8 of its last position."""
    return {p: samples for p, samples in curve.items() if p * ASYMPTOTIC_FACTOR >= max(curve)}


def exponent(curve, whole=False):
    """Slope of log cost against log position by least squares: value, low, high.

    whole: fit every position and not the asymptotic part alone. None with fewer than three positions.
    """
    part = curve if whole else asymptotic(curve)
    if len(part) < 3:
        return None
    positions, costs, drawn = _logs(part)
    low, high = np.quantile(np.polyfit(positions, drawn.T, 1)[0], [TAIL, 1 - TAIL])
    return float(np.polyfit(positions, costs, 1)[0]), float(low), float(high)


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

    0 stands for "from the first position on", inf for "not within the positions" that both curves have.
    """
    shared = growing.keys() & flat.keys()
    positions, dear, dear_drawn = _logs({p: growing[p] for p in shared})
    _, cheap, cheap_drawn = _logs({p: flat[p] for p in shared}, seed=1)
    found = sorted(_crossing(positions, difference) for difference in dear_drawn - cheap_drawn)
    value = _crossing(positions, dear - cheap)
    return value, found[int(TAIL * RESAMPLES)], found[int((1 - TAIL) * RESAMPLES) - 1]
