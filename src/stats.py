"""Statistics of paired samples: seconds in, intervals out. Knows nothing of torch or of records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9999
CONFIDENCE = 0.95
Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where there is too little to tell."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``faster``, ``slower`` or ``inconclusive``, for a speedup."""
        if np.isnan(self.low) or self.low <= 1.0 <= self.high:
            return "inconclusive"
        return "faster" if self.low > 1.0 else "slower"


def mean_interval(seconds: Seconds, batches_are_draws: bool, seed: int = 0) -> Interval:
    """Mean time of a batch with its bootstrap interval, resampling repeats, then batches (percentile method).

    Args:
        seconds: [repeats, batches].
        batches_are_draws: any batch could have been any other (shuffled prompts). Else, with prompts sorted by
            length, only repeats are resampled.
    """
    repeats, batches = seconds.shape
    if repeats * (batches if batches_are_draws else 1) < 2:
        return Interval(float(seconds.mean()), np.nan, np.nan)
    r, b = _resample(repeats, batches, seed)
    if not batches_are_draws:
        b = np.broadcast_to(np.arange(batches), b.shape)
    return _interval(float(seconds.mean()), _two_stage_sums(seconds, r, b) / batches)


def speedup_interval(base: Seconds, other: Seconds, same_batches: bool, seed: int = 0) -> Interval:
    """How many times faster ``other`` carries the dataset than ``base``: ratio of total times, with its interval.

    Args:
        base, other: [repeats, batches]; the same repeats side by side.
        same_batches: column b of both is the same batch. Then repeats and, within them, batches are resampled
            together, so the interval also covers another draw of batches from the dataset. A method that reorders has
            other batches, none of which is a draw like any other: then only repeats are resampled, and the interval
            is for this very dataset.
    """
    value = float(base.sum(1).mean() / other.sum(1).mean())
    repeats, batches = base.shape
    if repeats * (batches if same_batches else 1) < 2:
        return Interval(value, np.nan, np.nan)
    r, b = _resample(repeats, batches, seed)
    if not same_batches:
        b = np.broadcast_to(np.arange(batches), b.shape)
    return _interval(value, _two_stage_sums(base, r, b) / _two_stage_sums(other, r, b))


def _resample(repeats: int, batches: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, repeats, (RESAMPLES, repeats)), rng.integers(0, batches, (RESAMPLES, batches))


def _two_stage_sums(seconds: Seconds, r: NDArray[np.int64], b: NDArray[np.int64]) -> Seconds:
    """Mean over drawn repeats of the time of the drawn batches, [resamples].

    The batches of a dataset are the same in all repeats, so one draw of batches serves all repeats of a resample.
    """
    repeat_weights = np.stack([(r == index).sum(1) for index in range(seconds.shape[0])], 1) / r.shape[1]
    batch_weights = np.stack([(b == index).sum(1) for index in range(seconds.shape[1])], 1)
    return np.einsum("nr,rb,nb->n", repeat_weights, seconds, batch_weights, optimize=True)


def _interval(value: float, resampled: Seconds) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
