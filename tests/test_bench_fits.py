"""Intervals, exponents and crossovers on data with known answers."""

import time

import numpy as np
import pytest
from seqkernels.bench import fits, timing

POSITIONS = [16 * 2**k for k in range(11)]


def curve(cost, noise=0.0, samples=21):
    random = np.random.default_rng(3)
    return {p: list(cost(p) * np.exp(noise * random.standard_normal(samples))) for p in POSITIONS}


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponent_of_a_power(power):
    value, low, high = fits.exponent(curve(lambda p: 1e-6 * p**power))
    assert value == pytest.approx(power, abs=1e-9)
    assert low <= value <= high


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponent_with_noise_is_within_its_interval(power):
    value, low, high = fits.exponent(curve(lambda p: 1e-6 * p**power, noise=0.05))
    assert low < power < high and high - low < 0.1
    assert low < value < high


def test_exponent_is_that_of_the_asymptotic_part():
    data = curve(lambda p: 1.0 + 1e-9 * p**2)
    assert sorted(fits.asymptotic(data)) == POSITIONS[-4:]
    steep = curve(lambda p: 0.1 + 1e-5 * p**2)
    assert fits.exponent(steep)[0] == pytest.approx(2, abs=0.01)
    assert fits.exponent(steep, whole=True)[0] < 1.8


def test_exponent_needs_three_positions():
    assert fits.exponent({16: [1.0], 32: [2.0]}) is None


def test_crossover_of_a_line_and_a_constant():
    value, low, high = fits.crossover(curve(lambda p: 1e-6 * p), curve(lambda p: 1e-3))
    assert value == pytest.approx(1000, rel=1e-9) and low == high == value


def test_crossover_with_noise_is_within_its_interval():
    value, low, high = fits.crossover(curve(lambda p: 1e-6 * p, noise=0.1), curve(lambda p: 1e-3, noise=0.1))
    assert low < 1000 < high and low < value < high < 1200 and low > 800


def test_crossover_outside_the_range():
    cheap, dear = curve(lambda p: 1e-6), curve(lambda p: 1.0)
    assert fits.crossover(dear, cheap) == (0, 0, 0)
    assert fits.crossover(cheap, dear) == (float("inf"),) * 3


def test_crossover_uses_shared_positions_only():
    stopped = {p: samples for p, samples in curve(lambda p: 1e-6 * p).items() if p <= 2048}
    assert fits.crossover(stopped, curve(lambda p: 1e-3))[0] == pytest.approx(1000, rel=1e-9)


def test_median_interval_holds_the_median_of_the_source():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        middle, low, high = timing.median_interval(random.exponential(size=25))
        assert low <= middle <= high
        held += low <= np.log(2) <= high
    assert held >= 180


def test_few_values_give_their_extremes():
    assert timing.median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    "count, rank", [(6, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8), (30, 10), (40, 14), (50, 18)]
)
def test_median_interval_is_that_of_the_sign_test(count, rank):
    """Ranks from the tables of the sign test, two-sided at 5%."""
    values = np.random.default_rng(1).permutation(count)
    assert timing.median_interval(values)[1:] == (rank - 1, count - rank)


def test_ratio_pairs_rounds():
    ours = np.array([1.0, 2.0, 4.0, 8.0, 1.0, 2.0, 4.0])
    assert timing.ratio(ours, 3 * ours) == pytest.approx((3, 3, 3))


def test_geometric_mean():
    ones = [1.0] * 9
    value, low, high = timing.geometric_mean([(ones, [2.0] * 9), (ones, [8.0] * 9)])
    assert (value, low, high) == pytest.approx((4, 4, 4))


def test_geometric_mean_with_noise():
    noisy = np.exp(0.1 * np.random.default_rng(0).standard_normal(31))
    value, low, high = timing.geometric_mean([(noisy, 2 * np.ones(31))])
    assert low < value < high and low < 2 < high


def test_a_figure_holds_unless_its_interval_lies_below():
    assert timing.holds((1.9, 1.8, 2.0), 2.0)
    assert not timing.holds((1.9, 1.8, 1.99), 2.0)


def test_interleaving_alternates_the_order():
    seen = []

    def call(name):
        seen.append(name)
        time.sleep(0.003)

    rounds = timing.interleave([lambda: call("a"), lambda: call("b")], seconds=0)
    assert [len(r) for r in rounds] == [timing.MIN_ROUNDS] * 2
    assert "".join(seen[8:]) == "abbaabbaabbaab"
    assert all(0.003 <= seconds < 0.1 for r in rounds for seconds in r)


def test_short_calls_are_repeated():
    count = []
    (rounds,) = timing.interleave([lambda: count.append(1)], seconds=0)
    assert len(count) > 100 * timing.MIN_ROUNDS and max(rounds) < 1e-4
