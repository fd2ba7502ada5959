"""Statistics of paired samples: seconds in, intervals out. Knows nothing of torch or of records.

The samples of a method are seconds[repeat, batch]. Their spread has three parts: batches differ, repeats drift, and
every sample has noise of its own. A two-way analysis of variance tells them apart. What batches do to an estimate is
skewed (a few heavy ones decide the total), so its distribution is a studentized bootstrap's; what repeats do is
Student's t. docs/measuring.md has the formulae, references and simulated coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.special
from numpy.typing import NDArray

RESAMPLES = 9999
CONFIDENCE = 0.95
FEW = 5  # an interval over fewer draws than this is flagged: t with under four degrees of freedom is a guess
WIDEST = 2.0  # a resample of few batches may have next to no spread: no pivot is beyond so many of Student's quantiles
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
    few = seconds.shape[1 if batches_are_draws else 0] < FEW
    return _interval([seconds if batches_are_draws else seconds.mean(1, keepdims=True)], few, seed, resamples)


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
    few = base.shape[1 if same_batches else 0] < FEW
    if not same_batches:  # the totals of a pass are all that can be paired
        base, other = base.sum(1, keepdims=True), other.sum(1, keepdims=True)
    return _interval([base, other], few, seed, resamples)


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
    scale = scipy.special.ndtri(0.75) ** -1 * np.median(away) * len(seconds) / (len(seconds) - 1)
    return int((away > max(OUTLIER_MADS * scale, 1e-9)).sum())


def squared_errors(relative: Seconds) -> tuple[float, float]:
    """What repeats and what batches add to the squared standard error of the mean of a crossed table (two-way ANOVA).

    The noise of samples is in the second, or in the first where there is one batch. A single repeat or batch adds
    nothing, as nothing is known of it.

    Args:
        relative: [repeats, batches], deviations from an estimate, relative to it.
    """
    repeats, batches = relative.shape
    by_repeat, by_batch = relative.mean(1, keepdims=True), relative.mean(0, keepdims=True)
    rest = relative - by_repeat - by_batch + relative.mean()
    # Mean squares: of repeats, of batches, of what neither explains; all over the number of samples.
    of_repeats = by_repeat.var() / max(repeats - 1, 1)
    of_batches = by_batch.var() / max(batches - 1, 1)
    noise = rest.var() / max((repeats - 1) * (batches - 1), 1)
    return float(max(of_repeats - noise, 0.0)), float(of_batches)


def _interval(tables: list[Seconds], few: bool, seed: int, count: int) -> Interval:
    """95 % interval of a mean (one table) or of the ratio of two.

    log(truth / estimate) is taken for the sum of what repeats and what batches may have done to the estimate, two
    independent terms, each a standard error times a pivot; the interval holds the middle 95 % of ``count`` such sums.
    """
    repeats, batches = tables[0].shape
    means = [table.mean() for table in tables]
    value = float(means[0] / means[1] if len(tables) == 2 else means[0])
    if repeats * batches < 2:
        return Interval(value, np.nan, np.nan, few)
    rng = np.random.default_rng(seed)
    of_repeats, of_batches = squared_errors(_deviations(tables, means))
    away = np.zeros(count)
    if repeats > 1:
        away += np.sqrt(of_repeats) * _student(rng, repeats - 1, count)
    if batches > 1:
        # A batch weighs on the total that its own deviation is measured from, and so looks nearer to it.
        error = np.sqrt(of_batches * batches / (batches - 1))
        pivots = _student(rng, batches - 1, count) if few else _studentized(rng, tables, count)
        away -= error * pivots
    low, high = np.quantile(away, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    with np.errstate(over="ignore"):
        return Interval(value, value * float(np.exp(min(low, 0))), value * float(np.exp(max(high, 0))), few)


def _deviations(tables: list[Seconds], means: list[Seconds]) -> Seconds:
    """First-order effect of each entry on the log of the mean or ratio of means, times the number of entries."""
    return tables[0] / means[0] - (tables[1] / means[1] if len(tables) == 2 else 1)


def _student(rng: np.random.Generator, df: int, count: int) -> Seconds:
    """Student's distribution in ``count`` equally likely values, shuffled: quantiles of it alone are exact."""
    return rng.permutation(scipy.special.stdtrit(df, (np.arange(count) + 0.5) / count))


def _studentized(rng: np.random.Generator, tables: list[Seconds], count: int) -> Seconds:
    """(log estimate of a resample of batches - log estimate) / the resample's own standard error, [count].

    That estimate and standard error go together, both small where heavy batches are missing, is what it tells.
    """
    columns = [table.mean(0) / table.mean() for table in tables]
    batches = len(columns[0])
    weights = rng.multinomial(batches, np.full(batches, 1 / batches), count) / batches
    means = [weights @ column for column in columns]
    logs = np.log(means[0]) - (np.log(means[1]) if len(tables) == 2 else 0)
    spread = _deviations(columns, [mean[:, None] for mean in means])
    errors = np.sqrt((weights * spread**2).sum(1) / (batches - 1))
    widest = WIDEST * scipy.special.stdtrit(batches - 1, (1 + CONFIDENCE) / 2)
    return np.clip(logs / np.maximum(errors, 1e-15), -widest, widest)
