"""Intervals cover as often as they say, verdicts err as seldom as they say; all by simulation with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.coverage import BATCHES, REGIMES, REPEATS, coverage, draw
from src import stats

HELD = ("all mixed", "batches", "drift")  # noise alone is covered more often than 95 %: docs/measuring.md


@pytest.mark.slow
@pytest.mark.parametrize("regime", HELD)
def test_95_percent_intervals_cover_93_to_97_percent(regime: str) -> None:
    rng = np.random.default_rng(1)
    sizes = [(repeats, batches) for repeats in REPEATS for batches in BATCHES]
    found = np.array([coverage(REGIMES[regime], *size, 200, rng) for size in sizes])
    assert (found.mean(0) >= 0.93).all()
    assert (found.mean(0) <= 0.97).all()
    assert (found >= 0.90).all(), "a size of its own covers too seldom"


def test_a_method_against_itself_is_called_different_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(2)
    for drift in (0.0, 0.01):
        pairs = [draw(rng, 5, 16, (0.4, 0.0, 0.02, drift, 0.03, 0.0)) for _ in range(600)]
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
