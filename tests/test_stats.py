"""Intervals cover as often as they say, verdicts err as seldom as they say; all by simulation with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src import stats

# Standard deviations of log: true ratio of a batch, drift shared by both methods, drift of one, noise of a sample.
REGIMES = {"all": (0.1, 0.02, 0.01, 0.02), "batches": (0.2, 0.02, 0.0, 0.01), "drift": (0.02, 0.03, 0.03, 0.01)}
COST = 0.4  # of a batch's cost


def draw(
    rng: np.random.Generator, repeats: int, batches: int, regime: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    ratio, shared, own, noise = regime
    cost = rng.lognormal(0, COST, batches) * np.exp(rng.normal(0, shared, (repeats, 1)))

    def one() -> np.ndarray:
        return cost * np.exp(rng.normal(0, own, (repeats, 1)) + rng.normal(0, noise, (repeats, batches)))

    other = one()
    return one() * 2 * np.exp(rng.normal(0, ratio, batches)), other


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("of", ["speedup", "mean"])
def test_95_percent_intervals_cover_93_to_97_percent(regime: str, of: str) -> None:
    ratio, shared, own, noise = REGIMES[regime]
    speedup, mean = 2 * np.exp(ratio**2 / 2), np.exp((COST**2 + shared**2 + own**2 + noise**2) / 2)
    hits, rng = [], np.random.default_rng(1)
    for repeats in (3, 5, 10):
        for batches in (8, 16, 40):
            for _ in range(200):
                base, other = draw(rng, repeats, batches, REGIMES[regime])
                if of == "speedup":
                    found, truth = stats.speedup_interval(base, other, True, 0, 499), speedup
                else:
                    found, truth = stats.mean_interval(other, True, 0, 499), mean
                hits.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_a_method_against_itself_is_called_different_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(2)
    for drift in (0.0, 0.01):
        pairs = [draw(rng, 5, 16, (0.0, 0.02, drift, 0.03)) for _ in range(600)]
        found = [stats.speedup_interval(base / 2, other, True, 0, 499).verdict() for base, other in pairs]
        assert np.mean([verdict != "inconclusive" for verdict in found]) <= 0.05


def test_the_noise_floor_is_the_least_difference_that_counts() -> None:
    assert stats.Interval(1.02, 1.005, 1.04).verdict(0.01) == "inconclusive"
    assert stats.Interval(1.02, 1.011, 1.04).verdict(0.01) == "faster"
    assert stats.Interval(0.98, 0.97, 0.989).verdict(0.01) == "slower"


def test_outliers_are_counted_from_three_repeats_on() -> None:
    seconds = np.linspace(1, 9, 8) * np.random.default_rng(0).normal(1, 0.01, (6, 8))
    seconds[2, 3] *= 1.5
    assert 1 <= (stats.outliers(seconds) or 0) <= 4
    assert stats.outliers(np.ones((4, 4))) == 0
    assert stats.outliers(seconds[:2]) is None


def test_a_speedup_of_two_has_a_tight_interval_around_two() -> None:
    rng = np.random.default_rng(0)
    batches = rng.uniform(0.5, 3, (1, 20))
    base = batches * rng.normal(1, 0.01, (5, 20))
    for same_batches in (True, False):
        found = stats.speedup_interval(base, base / 2, same_batches)
        assert found.value == pytest.approx(2)
        assert found.low == pytest.approx(2, rel=0.02)
        assert found.high == pytest.approx(2, rel=0.02)
        assert found.verdict() == "faster"
    assert stats.speedup_interval(base, base * 2, True).verdict() == "slower"
    noisy = batches * rng.normal(1, 0.01, (5, 20))
    assert stats.speedup_interval(base, noisy, True).verdict() == "inconclusive"


def test_batches_that_differ_in_length_do_not_blur_a_paired_speedup() -> None:
    batches = np.linspace(0.1, 10, 16)[None]
    noise = np.random.default_rng(1).normal(1, 0.005, (2, 4, 16))
    paired = stats.speedup_interval(batches * noise[0], batches * noise[1] / 3, True)
    mean = stats.mean_interval(batches * noise[0], batches_are_draws=True)
    assert (paired.high - paired.low) / paired.value < 0.03
    assert (mean.high - mean.low) / mean.value > 0.3


def test_sorted_batches_are_not_draws_so_only_repeats_spread_their_mean() -> None:
    seconds = np.array([[0.1, 1.0, 9.0], [0.1, 1.1, 9.1], [0.1, 1.0, 9.2]])
    found = stats.mean_interval(seconds, batches_are_draws=False)
    assert found.precision < 0.05 < stats.mean_interval(seconds, batches_are_draws=True).precision
    assert found.few


@given(st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_intervals_hold_their_value_or_are_absent(repeats: int, batches: int, same: bool) -> None:
    seconds = np.random.default_rng(repeats * 10 + batches).uniform(1, 2, (2, repeats, batches))
    for found in (stats.speedup_interval(seconds[0], seconds[1], same), stats.mean_interval(seconds[0], same)):
        if repeats * (batches if same else 1) < 2:
            assert np.isnan(found.low)
            assert found.verdict() == "inconclusive"
        else:
            assert found.low - 1e-12 <= found.value <= found.high + 1e-12
