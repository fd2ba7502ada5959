"""Statistics of paired samples: seconds in, intervals out. Knows nothing of torch or of records.

The samples of a method are seconds[repeat, batch]. Their spread has three parts: batches differ, repeats drift, and
every sample has noise of its own. A hierarchical bootstrap (repeats, then batches) gives the shape of the interval; its
width is set to the standard error from a two-way analysis of variance and to Student's t, because over few repeats and
batches the bootstrap's own width is wrong. docs/measuring.md has the formulae, references and simulated coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

RESAMPLES = 9999
CONFIDENCE = 0.95
FEW = 5  # an interval over fewer draws than this is flagged: t with under four degrees of freedom is a guess
OUTLIER_MADS = 3.0
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where there is too little to tell.

    ``few``: it rests on fewer than five batches, or repeats where only those are draws.
    """

    value: float
    low: float
    high: float
    few: bool = False

    @property
    def precision(self) -> float:
        """Half the interval's width over its value; infinite where there is no interval."""
        return float("inf") if np.isnan(self.low) else (self.high - self.low) / 2 / self.value

    def verdict(self, noise_floor: float = 0.0) -> str:
        """``faster``, ``slower`` or ``inconclusive``, for a speedup.

        Args:
            noise_floor: difference that does not count, 0.01 for 1 %: the whole interval must lie beyond 1 ± it.
        """
        if self.low > 1 + noise_floor:
            return "faster"
        return "slower" if self.high < 1 - noise_floor else "inconclusive"


def mean_interval(seconds: Seconds, batches_are_draws: bool, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean time of a batch with its interval, in seconds.

    Args:
        seconds: [repeats, batches].
        batches_are_draws: any batch could have been any other (shuffled prompts). Else, with prompts sorted by
            length, only repeats are draws.
        seed, resamples: of the bootstrap.
    """
    relative = seconds / seconds.mean() - 1
    return _interval(seconds.mean(), relative, [seconds], batches_are_draws, seed, resamples)


def speedup_interval(
    base: Seconds, other: Seconds, same_batches: bool, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """How many times faster ``other`` carries the dataset than ``base``: ratio of total times, with its interval.

    Args:
        base, other: [repeats, batches]; the same repeats side by side.
        same_batches: column b of both is the same batch. Then repeats and batches are draws, and the interval also
            covers another draw of batches from the dataset. A method that reorders has other batches, none of which
            is a draw like any other: then only repeats are draws, and the interval is for this very dataset.
        seed, resamples: of the bootstrap.
    """
    value = base.sum(1).mean() / other.sum(1).mean()
    if not same_batches:  # the totals of a pass are all that can be paired
        base, other = base.sum(1, keepdims=True), other.sum(1, keepdims=True)
    relative = base / base.mean() - other / other.mean()
    return _interval(value, relative, [base, other], same_batches, seed, resamples)


def outliers(seconds: Seconds) -> int | None:
    """How many samples lie far from the median of their batch; None under 3 repeats, which have no median to trust.

    Far: more than 3 scaled median absolute deviations. The deviations, relative to each batch's median, are pooled
    over all batches, as the few repeats of one batch say little of their own spread.

    Args:
        seconds: [repeats, batches].
    """
    if len(seconds) < 3:
        return None
    away = np.abs(seconds / np.median(seconds, axis=0) - 1)
    # A batch's median is one of its samples or lies between two: R / (R - 1) undoes the shrinking this means.
    scale = scipy.stats.norm.ppf(0.75) ** -1 * np.median(away) * len(seconds) / (len(seconds) - 1)
    return int((away > max(OUTLIER_MADS * scale, 1e-9)).sum())


def standard_error(relative: Seconds, batches_are_draws: bool) -> tuple[float, float]:
    """Standard error of the mean of a crossed table, and its degrees of freedom (two-way ANOVA, Satterthwaite).

    Args:
        relative: [repeats, batches], deviations from an estimate, relative to it.
        batches_are_draws: whether batches are a random sample; else only repeats are.

    Returns:
        (NaN, NaN) where there are fewer than two draws.
    """
    repeats, batches = relative.shape
    if not batches_are_draws:
        relative, batches = relative.mean(1, keepdims=True), 1
    if repeats * batches < 2:
        return np.nan, np.nan
    if min(repeats, batches) == 1:
        return float(relative.std(ddof=1) / np.sqrt(relative.size)), relative.size - 1
    by_repeat, by_batch = relative.mean(1, keepdims=True), relative.mean(0, keepdims=True)
    rest = relative - by_repeat - by_batch + relative.mean()
    # Mean squares: of repeats, of batches, of what neither explains; all over the number of samples.
    dfs = np.array([repeats - 1, batches - 1, (repeats - 1) * (batches - 1)])
    of_repeats, of_batches, noise = (
        np.array([batches * by_repeat.var() * repeats, repeats * by_batch.var() * batches, (rest**2).sum()]) / dfs
    ) / relative.size
    # A mean square below the noise is an effect below zero: it is left out, and the noise counted once.
    parts = np.array([max(of_repeats, noise), max(of_batches, noise), -noise])
    variance = parts.sum()
    if variance <= 0:
        return 0.0, float(dfs[2])
    return float(np.sqrt(variance)), _degrees_of_freedom(parts, dfs, of_repeats > noise, of_batches > noise)


def _degrees_of_freedom(parts: Seconds, dfs: NDArray[np.int64], repeats_count: bool, batches_count: bool) -> float:
    if repeats_count and batches_count:
        return float(parts.sum() ** 2 / (parts**2 / dfs).sum())
    return float(dfs[0] if repeats_count else dfs[1] if batches_count else dfs[2])


def _interval(value: float, relative: Seconds, tables: list[Seconds], draws: bool, seed: int, count: int) -> Interval:
    """The bootstrap's 95 % range of log(value), stretched about log(value) to the right standard error and t."""
    repeats, batches = relative.shape
    few = (batches if draws else repeats) < FEW
    error, df = standard_error(relative, draws)
    if np.isnan(error):
        return Interval(float(value), np.nan, np.nan, few)
    if draws and batches > 1:
        # One batch of few weighs on the very total its deviation is measured from: the jackknife's correction for it.
        error *= batches / (batches - 1)
    logs = _resampled_logs(tables, draws, seed, count)
    tail = (1 - CONFIDENCE) / 2
    normal, student = scipy.stats.norm.ppf(1 - tail), scipy.stats.t.ppf(1 - tail, df)
    spread = logs.std()
    shape = np.quantile(logs, [tail, 1 - tail]) / spread if spread > 1e-15 else np.array([-normal, normal])
    low, high = np.array([min(shape[0], 0), max(shape[1], 0)]) * error * student / normal
    with np.errstate(over="ignore"):
        return Interval(float(value), float(value * np.exp(low)), float(value * np.exp(high)), few)


def _resampled_logs(tables: list[Seconds], draws: bool, seed: int, count: int) -> Seconds:
    """log(estimate of a resample / estimate), [count]; one table: its total; two: the ratio of their totals.

    Repeats are drawn, then batches; the batches of a dataset are the same in all repeats, so one draw of batches serves
    all repeats of a resample, and both methods.
    """
    rng = np.random.default_rng(seed)
    repeats, batches = tables[0].shape
    r = rng.multinomial(repeats, np.full(repeats, 1 / repeats), count) / repeats
    b = (
        rng.multinomial(batches, np.full(batches, 1 / batches), count) / batches
        if draws
        else np.full((count, batches), 1 / batches)
    )
    logs = [np.log(np.einsum("nb,nb->n", r @ table, b) / table.mean()) for table in tables]
    return logs[0] if len(logs) == 1 else logs[0] - logs[1]
