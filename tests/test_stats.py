"""Intervals cover as often as they say, verdicts err as seldom as they say; all by simulation with fixed seeds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.coverage import REAL, SYNTHETIC, Disturbance, Lognormal, Regime, coverage
from src import stats

# Not among them: very uneven batches whose ratio goes with their cost, of which 90 % are covered: docs/measuring.md
HELD: dict[str, Regime] = {
    **{name: SYNTHETIC[name] for name in ("all mixed", "batches", "drift", "noise alone")},
    **{
        f"{name}, batches of {prompts}": REAL[f"{name}, batches of {prompts}"]
        for name, prompts in (("mmlu", 32), ("mmlu", 64), ("alpaca", 16), ("azure-code", 32))
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("regime", HELD)
def test_95_percent_intervals_cover_93_to_97_percent(regime: str) -> None:
    rng = np.random.default_rng(1)
    sizes = [(repeats, batches) for repeats in (3, 10) for batches in (6, 16, 40)]
    found = np.array([coverage(HELD[regime], *size, 150, rng) for size in sizes])
    assert (found.mean(0) >= 0.93).all()
    assert (found.mean(0) <= 0.97).all()
    assert (found >= 0.90).all(), "a size of its own covers too seldom"


@pytest.mark.slow
def test_a_method_against_itself_is_called_different_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(2)
    wrong: dict[float, list[tuple[bool, bool]]] = {drift: [] for drift in (0.0, 0.003, 0.01)}
    for drift, found in wrong.items():
        regime = Lognormal(0.4, 0.0, 0.0, Disturbance(0.02, drift, 0.03))
        for repeats, batches in ((3, 8), (3, 40), (5, 16), (10, 8), (10, 40)):
            for _ in range(120):
                base, other = regime.draw(rng, repeats, batches)
                ratio = stats.speedup_interval(base / 2, other, True, 499)
                found.append((ratio.verdict() != "inconclusive", ratio.verdict(0.01) != "inconclusive"))
        assert np.mean([with_floor for _, with_floor in found]) <= 0.05, "with the default noise floor"
    assert np.mean([without for found in wrong.values() for without, _ in found]) <= 0.05


def test_intervals_over_very_few_batches_are_flagged_finite_and_not_absurd() -> None:
    rng = np.random.default_rng(3)
    for batches in (3, 4, 5, 6):
        found = [stats.speedup_interval(*REAL["mmlu, batches of 32"].draw(rng, 3, batches), True) for _ in range(40)]
        assert all(interval.few == (batches < 5) for interval in found)
        assert np.median([interval.high / interval.low for interval in found]) < 10
        assert max(interval.high / interval.low for interval in found) < 1000


def test_an_interval_over_many_resamples_takes_well_under_a_second() -> None:
    base, other = HELD["all mixed"].draw(np.random.default_rng(0), 10, 40)
    start = time.perf_counter()
    stats.speedup_interval(base, other, True)
    assert time.perf_counter() - start < 1


def test_two_runs_over_the_same_batches_are_compared_with_the_drift_of_each() -> None:
    rng = np.random.default_rng(4)
    costs = REAL["mmlu, batches of 32"].draw(rng, 1, 16)[0]

    def run(repeats: int) -> stats.Seconds:
        return costs * np.exp(rng.normal(0, 0.02, (repeats, 1)) + rng.normal(0, 0.02, (repeats, 16)))

    sizes = [(3, 3), (3, 10), (5, 5)]
    found = [stats.between_runs(1.25 * run(a), run(b), True, 499) for a, b in sizes for _ in range(100)]
    assert 0.93 <= np.mean([interval.low <= 1.25 <= interval.high for interval in found]) <= 0.99
    change = [stats.speedup_between_runs((run(3), run(3)), (2 * run(4), run(4)), True, 499) for _ in range(100)]
    assert np.mean([interval.low <= 2 <= interval.high for interval in change]) >= 0.93
    assert np.median([interval.precision for interval in change]) < 0.15


def test_of_intervals_alone_the_ratio_is_wider_than_of_samples() -> None:
    assert stats.ratio_of_intervals(stats.Interval(2, 1, 4), stats.Interval(1, 1, 1)) == stats.Interval(2, 1, 4)
    both = stats.ratio_of_intervals(stats.Interval(2, 1, 4), stats.Interval(1, 0.5, 2))
    assert np.log([both.low / 2, both.high / 2]) == pytest.approx([-np.sqrt(2) * np.log(2), np.sqrt(2) * np.log(2)])
    assert np.isnan(stats.ratio_of_intervals(stats.Interval(2, 1, 4), stats.Interval(1, np.nan, np.nan)).low)


def test_over_repeats_alone_the_interval_is_students() -> None:
    seconds = np.array([[1.0, 2.0], [1.1, 2.1], [0.9, 2.3]])
    totals = seconds.sum(1) / seconds.sum(1).mean()
    half_width = 4.3027 * totals.std(ddof=1) / np.sqrt(3)  # t: 97.5 % over two degrees of freedom
    found = stats.mean_interval(seconds, batches_are_draws=False)
    assert np.log(found.high / found.value) == pytest.approx(half_width, rel=1e-2)
    assert np.log(found.low / found.value) == pytest.approx(-half_width, rel=1e-2)


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
