"""What waiting came to: times to first token with intervals, goodput, the device's busy share, whether it kept up.

Waits of prompts that queue behind each other are no independent samples. What happens in one *busy period* (from a
moment at which the device has nothing to do to the next) is independent of what happens in another one, so that periods
are resampled, whole (the regenerative bootstrap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..interval import Interval
from .loop import Floats, Served

DRAWS = 1000
FEWEST_PERIODS = 10  # busy periods; of fewer an interval would say more than is known
BACKLOG = 0.05  # share of the arrivals' span within which a server that keeps up has served the last of them
BATCHES_BEHIND = 2  # and at least so many of its longest batches: the one that runs, and its own
LONG_ENOUGH = 5  # of its longest batches: arrivals within less time are a burst, and say nothing of a rate


@dataclass(frozen=True)
class Waits:
    """What the prompts of one run waited.

    Attributes:
        ttft: mean and percentiles of the time from arrival to first token, seconds, with 95 % intervals; without where
            there are too few busy periods.
        queue: the same of the time from arrival to the start of the batch; not a number where an engine has a queue
            of its own.
        busy_share: of the time from the first arrival to the last first token, in which the device computed.
        busy_periods: spans in which it was never idle.
        rate: prompts a second that arrived.
        goodput: prompts a second whose first token came within the objective; None without one.
        stable: whether it kept up: the last prompts were served soon after they had come; None where all of them came
            within so short a time that it cannot be told.
    """

    ttft: dict[str, Interval]
    queue: dict[str, Interval]
    busy_share: float
    busy_periods: int
    rate: float
    goodput: float | None
    stable: bool | None


def waits_of(served: Served, slo_s: float | None, seed: int = 0, draws: int = DRAWS) -> Waits:
    """Sum up a run.

    Args:
        slo_s: the objective, seconds to the first token; None: there is none.
        seed: of the bootstrap.
        draws: of the bootstrap, which takes nearly all the time; 0 leaves the intervals out.
    """
    batch = served.batch_of
    starts_s, ends_s = np.array(served.starts_s), np.array(served.ends_s)
    ttft_s, queue_s = ends_s[batch] - served.arrivals_s, starts_s[batch] - served.arrivals_s
    of_batch = _busy_periods(starts_s, ends_s)
    periods = of_batch[batch]
    if served.within:
        queue_s = np.full_like(queue_s, np.nan)
    arrived_s = float(served.arrivals_s[-1] - served.arrivals_s[0])
    last_s = float(ends_s.max())  # an engine may give the first token of the prompt that came last before another's
    span_s = last_s - float(served.arrivals_s[0])
    within = None if slo_s is None else float((ttft_s <= slo_s).sum()) / span_s
    behind_s = last_s - float(served.arrivals_s[-1])
    took_s = ends_s - starts_s
    longest_s = float(took_s.min() if served.within else took_s.max())  # an engine's own batches are not seen
    kept_up = behind_s <= max(BACKLOG * arrived_s, BATCHES_BEHIND * longest_s)
    return Waits(
        _summary(ttft_s, periods, seed, draws),
        _summary(queue_s, periods, seed, draws),
        _busy_s(starts_s, ends_s, of_batch) / span_s,
        int(periods.max()) + 1,
        (len(ttft_s) - 1) / arrived_s if arrived_s else float("inf"),
        within,
        kept_up if arrived_s >= LONG_ENOUGH * longest_s or not kept_up else None,
    )


def _busy_periods(starts_s: Floats, ends_s: Floats) -> NDArray[np.int64]:
    """The busy period of each batch, int64 [batches]: a new one begins where the device had been idle.

    A batch that begins at the very moment at which one ends found prompts waiting. In real time choosing takes a
    moment, which is far shorter than any batch.
    """
    gaps = starts_s[1:] - np.maximum.accumulate(ends_s)[:-1] > 0.01 * float((ends_s - starts_s).min())
    return np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)


def _busy_s(starts_s: Floats, ends_s: Floats, periods: NDArray[np.int64]) -> float:
    """Seconds within busy periods: from the first start of each to its last end."""
    first = np.searchsorted(periods, np.arange(periods[-1] + 1))
    return float((np.maximum.reduceat(ends_s, first) - starts_s[first]).sum())


PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


def _summary(seconds: Floats, periods: NDArray[np.int64], seed: int, draws: int) -> dict[str, Interval]:
    """Mean and percentiles, with 95 % intervals by resampling busy periods."""
    found = {"mean": float(seconds.mean())}
    found |= {name: float(np.percentile(seconds, share, method="higher")) for name, share in PERCENTILES.items()}
    count = int(periods.max()) + 1
    if count < FEWEST_PERIODS or not draws:
        return {name: Interval(value, math.nan, math.nan) for name, value in found.items()}
    rng, order = np.random.default_rng(seed), np.argsort(seconds, kind="stable")
    ranked, of = seconds[order], periods[order]
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(draws):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)[of]
        passed = np.cumsum(weights)
        drawn["mean"].append(float(ranked @ weights / passed[-1]))
        for name, share in PERCENTILES.items():
            drawn[name].append(float(ranked[np.searchsorted(passed, share / 100 * passed[-1])]))
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in drawn.items()}
    return {name: Interval(value, float(ends[name][0]), float(ends[name][1])) for name, value in found.items()}
