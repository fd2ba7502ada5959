"""Statistics of paired samples: seconds in, intervals out. Knows nothing of torch or of records.

The samples of a method are seconds[repeat, batch]. Their spread has three parts: batches differ, repeats drift, and
every sample has noise of its own. A two-way analysis of variance tells them apart. What batches do to an estimate is
skewed (a few heavy ones decide the total), so its distribution is a studentized bootstrap's; what repeats do is
Student's t. docs/measuring.md has the formulae, references and simulated coverage.
"""

from __future__ import annotations

import numpy as np
import scipy.special
from numpy.typing import NDArray

from .interval import FEW, Interval

RESAMPLES, SEED = 9999, 0  # of the bootstrap: equal samples give equal intervals
CONFIDENCE = 0.95
WIDEST = 2.0  # limit of a pivot, in Student's quantiles: a resample of few batches may have almost no spread
OUTLIER_MADS = 3.0
Seconds = NDArray[np.float64]
# Of one run, the tables [repeats, batches] whose means an estimate multiplies (1) or divides by (-1), repeat by repeat.
SignedTables = list[tuple[int, Seconds]]


def mean_interval(seconds: Seconds, batches_are_draws: bool, resamples: int = RESAMPLES) -> Interval:
    """Mean time of a batch with its interval, in seconds.

    Args:
        seconds: [repeats, batches].
        batches_are_draws: any batch could have been any other (shuffled prompts). Else, with prompts sorted by
            length, only repeats are draws.
        resamples: of the bootstrap.
    """
    few = _few(seconds, batches_are_draws)
    return _interval([[(1, seconds if batches_are_draws else seconds.mean(1, keepdims=True))]], few, resamples)


def speedup_interval(base: Seconds, other: Seconds, same_batches: bool, resamples: int = RESAMPLES) -> Interval:
    """How many times faster ``other`` is than ``base`` over the dataset: ratio of total times, with its interval.

    Args:
        base, other: [repeats, batches]; the same repeats side by side.
        same_batches: column b of both is the same batch. Then repeats and batches are draws, and the interval also
            covers another draw of batches from the dataset. A method that reorders has other batches, none of which
            is a draw like any other: then only repeats are draws, and the interval is for this very dataset.
        resamples: of the bootstrap.
    """
    few = _few(base, same_batches)
    if not same_batches:  # only the totals of a pass can be paired
        base, other = base.sum(1, keepdims=True), other.sum(1, keepdims=True)
    return _interval([[(1, base), (-1, other)]], few, resamples)


def between_runs(reference: Seconds, other: Seconds, same_batches: bool, resamples: int = RESAMPLES) -> Interval:
    """How many times faster a run is than a reference run, of another machine or another version.

    The batches of both are the same, so what batches differ by cancels as in ``speedup_interval``, and what they differ
    by in their ratio (long ones may gain more) stays. The repeats are not the same: those of one run drift with its
    own machine. Nothing of that cancels, and repeat 2 of one has nothing to do with repeat 2 of the other. So each
    run's drift is a term of its own, from its own repeats, of which there may be more in one than in the other. A run
    of one repeat tells nothing of its drift, so that there is no interval.

    Args:
        reference, other: [repeats, batches], the repeats of each its own.
        same_batches: as for ``speedup_interval``; False also allows different numbers of batches.
        resamples: of the bootstrap.
    """
    return _of_runs([[(1, reference)], [(-1, other)]], same_batches, resamples)


def speedup_between_runs(
    reference: tuple[Seconds, Seconds],
    other: tuple[Seconds, Seconds],
    same_batches: bool,
    resamples: int = RESAMPLES,
) -> Interval:
    """A method's speedup over its baseline in a run, over that speedup in a reference run.

    Args:
        reference, other: baseline and method of a run, [repeats, batches] each, the same repeats side by side.
        same_batches, resamples: as for ``between_runs``.
    """
    runs = [[(sign, base), (-sign, own)] for sign, (base, own) in ((-1, reference), (1, other))]
    return _of_runs(runs, same_batches, resamples)


def ratio_of_intervals(top: Interval, bottom: Interval) -> Interval:
    """The ratio of two estimates of which only the intervals are known, taken for independent.

    The distances of each interval's ends, as logs, add in squares (Zou and Donner's method of variance estimates
    recovery). Estimates from the same batches vary together, which would cancel: so this is too wide, not too narrow.
    """
    value, doubts = top.value / bottom.value, (top.few or bottom.few, top.invalid or bottom.invalid)
    ends = np.array([top.low, top.high, bottom.low, bottom.high])
    if not (np.isfinite(ends) & (ends > 0)).all():
        return Interval(value, np.nan, np.nan, *doubts)
    down = np.hypot(np.log(top.value / top.low), np.log(bottom.high / bottom.value))
    up = np.hypot(np.log(top.high / top.value), np.log(bottom.value / bottom.low))
    return Interval(value, float(value * np.exp(-down)), float(value * np.exp(up)), *doubts)


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


def _of_runs(runs: list[SignedTables], same_batches: bool, count: int) -> Interval:
    few = any(_few(table, same_batches) for run in runs for _, table in run)
    if not same_batches:
        runs = [[(sign, table.sum(1, keepdims=True)) for sign, table in run] for run in runs]
    found = _interval(runs, few, count)
    known = all(len(table) > 1 for run in runs for _, table in run)
    return found if known else Interval(found.value, np.nan, np.nan, few)


def _few(seconds: Seconds, batches_are_draws: bool) -> bool:
    """Whether too little is behind an interval to vouch for it: few draws, or one repeat, which leaves drift out."""
    return len(seconds) < 2 or seconds.shape[1 if batches_are_draws else 0] < FEW


def _interval(runs: list[SignedTables], few: bool, count: int) -> Interval:
    """95 % interval of a mean (one table), of a ratio of two, or of a ratio of ratios.

    log(truth / estimate) is taken for the sum of what each run's repeats and what batches may have done to the
    estimate, independent terms, each a standard error times a pivot; the interval holds the middle 95 % of ``count``
    such sums. The bootstrap's pivot is (resample - estimate) / error, and the truth lies to the estimate as the
    estimate to its resamples, so that it is subtracted; Student's is symmetric, and its sign does not matter.
    """
    tables = [signed for run in runs for signed in run]
    value = _estimate([(sign, float(table.mean())) for sign, table in tables])
    batches = tables[0][1].shape[1]
    if batches < 2 and min(len(table) for _, table in tables) < 2:
        return Interval(value, np.nan, np.nan, few)
    rng = np.random.default_rng(SEED)
    away = np.zeros(count)
    for run in runs:
        repeats = len(run[0][1])
        if repeats > 1:
            of_repeats, _ = squared_errors(_deviations(run))
            away += np.sqrt(of_repeats) * _student(rng, repeats - 1, count)
    if batches > 1:
        _, of_batches = squared_errors(_deviations([(sign, table.mean(0, keepdims=True)) for sign, table in tables]))
        # Each batch is part of the mean that it is compared with, which shrinks its deviation; this corrects for that.
        error = np.sqrt(of_batches * batches / (batches - 1))
        pivots = _student(rng, batches - 1, count) if batches < FEW else _studentized(rng, tables, count)
        away -= error * pivots
    low, high = np.quantile(away, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # A skewed pivot could else leave the estimate itself out of its interval.
    with np.errstate(over="ignore"):
        return Interval(value, value * float(np.exp(min(low, 0))), value * float(np.exp(max(high, 0))), few)


def _estimate(means: list[tuple[int, float]]) -> float:
    above, below = ([mean for sign, mean in means if sign == side] for side in (1, -1))
    return float(np.prod(above) / np.prod(below))


def _deviations(tables: SignedTables) -> Seconds:
    """First-order effect of each entry on the log of the estimate, times the number of entries."""
    return np.sum([sign * (table / table.mean() - 1) for sign, table in tables], axis=0)


def _student(rng: np.random.Generator, df: int, count: int) -> Seconds:
    """Student's distribution in ``count`` equally likely values, shuffled: quantiles of it alone are exact."""
    return rng.permutation(scipy.special.stdtrit(df, (np.arange(count) + 0.5) / count))


def _studentized(rng: np.random.Generator, tables: SignedTables, count: int) -> Seconds:
    """(log estimate of a resample of batches - log estimate) / the resample's own standard error, [count].

    It keeps the dependence of the two: both are small in resamples that miss the heavy batches.
    """
    batches = tables[0][1].shape[1]
    weights = rng.multinomial(batches, np.full(batches, 1 / batches), count) / batches
    logs, spread = np.zeros(count), np.zeros((count, batches))
    for sign, table in tables:
        column = table.mean(0) / table.mean()
        means = weights @ column
        logs += sign * np.log(means)
        spread += sign * (column / means[:, None] - 1)
    errors = np.sqrt((weights * spread**2).sum(1) / (batches - 1))
    widest = WIDEST * scipy.special.stdtrit(batches - 1, (1 + CONFIDENCE) / 2)
    return np.clip(logs / np.maximum(errors, 1e-15), -widest, widest)
