"""The largest rate of arrivals that keeps an objective, of each method and policy, on the arrivals of each seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from ..config import Config
from ..interval import Interval
from ..records.groups import place_of
from ..records.row import HOW, MACHINE, WORK, Row, key, parts
from ..records.store import Record
from .select import clean

FIRST = "fifo"
Name = tuple[str, str, str, str]  # method, policy, clock, and how the method did it where that is not the default
DEFAULT = Config()
WAYS = tuple(name for name in parts(HOW) if name not in ("method", "policy", "clock"))


@dataclass(frozen=True)
class Curve:
    """One method and policy at several rates, ascending, with the arrivals of one seed."""

    rows: list[Row]

    @property
    def judged(self) -> list[Row]:
        """The runs that may be relied upon; all, where none may."""
        return [row for row in self.rows if row.valid is not False] or self.rows

    @property
    def best(self) -> Row | None:
        """The run at the largest rate that keeps the objective, if every lower one that was tried does, too."""
        kept = None
        for row in self.judged:
            if not _keeps(row, row.ttft_p99_s):
                break
            kept = row
        return kept

    @property
    def above(self) -> float:
        """The least rate that was tried and broke the objective; NaN where none was."""
        broken = (row.rate for row in self.judged if row.rate and _breaks(row, row.ttft_p99_s))
        return min(broken, default=math.nan)

    @property
    def rate(self) -> Interval | None:
        """The largest rate, from the last that surely keeps the objective to the first that surely breaks it."""
        if self.best is None or self.best.rate is None:
            return None
        surely = [row.rate for row in self.judged if row.rate and _keeps(row, row.ttft_p99_high_s or row.ttft_p99_s)]
        broken = [row.rate for row in self.judged if row.rate and _breaks(row, row.ttft_p99_low_s or row.ttft_p99_s)]
        rate = self.best.rate
        low = max((each for each in surely if each <= rate), default=math.nan)
        return Interval(rate, low, min((each for each in broken if each > rate), default=math.nan))


@dataclass(frozen=True)
class Curves:
    """One method and policy with the arrivals and prompts of each seed.

    A seed whose runs are all INVALID is left out where another one has a run that is not.
    """

    of_seed: dict[int, Curve]

    @property
    def found(self) -> dict[int, Curve]:
        """The seeds with a largest rate. Others were cut off, or no rate that was tried keeps the objective."""
        return {seed: curve for seed, curve in self.of_seed.items() if curve.best is not None}

    @property
    def rows(self) -> list[Row]:
        """All runs."""
        return [row for curve in self.of_seed.values() for row in curve.rows]

    @property
    def best(self) -> list[Row]:
        """Each seed's run at its largest rate."""
        return [curve.best for curve in self.of_seed.values() if curve.best is not None]

    @property
    def rate(self) -> Interval | None:
        """The largest rate: of one seed as its curve tells it, of several their geometric mean."""
        if not self.best:
            return None
        if len(self.found) == 1:
            return next(iter(self.found.values())).rate
        kept = [row.rate or math.nan for row in self.best]
        return _over_seeds(kept, kept, [curve.above for curve in self.found.values()])

    @property
    def bounded(self) -> bool:
        """Whether a rate broke the objective with the arrivals of each seed, so that the largest is not a least one."""
        return not any(math.isnan(curve.above) for curve in self.found.values())

    def shared(self, base: Curves) -> list[int]:
        """The seeds with which both have a largest rate."""
        return sorted(self.found.keys() & base.found.keys())

    def over(self, base: Curves) -> Interval | None:
        """The rate over another one's, seed by seed, as both had its arrivals; None without a seed in common."""
        both = self.shared(base)
        if not both:
            return None
        if len(both) == 1:
            own, other = self.of_seed[both[0]].rate, base.of_seed[both[0]].rate
            assert own is not None
            assert other is not None
            return Interval(own.value / other.value, own.low / other.high, own.high / other.low)
        pairs = [(self.of_seed[seed], base.of_seed[seed]) for seed in both]
        kept = [(_kept(mine), mine.above, _kept(theirs), theirs.above) for mine, theirs in pairs]
        return _over_seeds(
            [mine / theirs for mine, _, theirs, _ in kept],
            [mine / theirs_above for mine, _, _, theirs_above in kept],
            [mine_above / theirs for _, mine_above, theirs, _ in kept],
        )


def _kept(curve: Curve) -> float:
    return math.nan if curve.best is None or curve.best.rate is None else curve.best.rate


def _over_seeds(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> Interval:
    """The geometric mean of a figure of each seed, and a 95 % t interval.

    Rates are tried on a grid, so that each seed's figure is known from a low to a high end; the interval is that of the
    mean, reaching from the mean of the low ends to that of the high ones as well.
    """
    logs, number = np.log(values), len(values)
    half = float(scipy.special.stdtrit(number - 1, 0.975) * logs.std(ddof=1) / math.sqrt(number))
    value, low, high = (float(np.exp(np.mean(np.log(each)))) for each in (values, lows, highs))
    return Interval(value, low * math.exp(-half), high * math.exp(half))


def _in_time(row: Row, p99_s: float | None) -> bool:
    return p99_s is not None and row.slo_ms is not None and 1000 * p99_s <= row.slo_ms


def _keeps(row: Row, p99_s: float | None) -> bool:
    return bool(row.stable) and _in_time(row, p99_s)


def _breaks(row: Row, p99_s: float | None) -> bool:
    """Whether it surely does not keep the objective; a run that was too short to tell does neither."""
    return row.stable is False or not _in_time(row, p99_s)


Found = list[dict[Name, Curves]]  # of each setting the curves


def curves(records: Sequence[Record]) -> Found:
    """The curves of each setting: what is equal in everything but the name of a curve, rate and seed."""
    settings: dict[tuple[Any, ...], dict[Name, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in clean(records, status="ok"):
        if row.arrivals is not None:
            same = (
                row.dataset,
                row.dataset_detail,
                row.model,
                *key(row, WORK, MACHINE, but=("rate", "workload_fingerprint")),
            )
            settings[same][row.method, row.policy or "", row.clock or "", _way(row)].append(row)
    found = []
    for _, curves in sorted(settings.items(), key=str):
        ordered = sorted(curves.items(), key=lambda each: (place_of(each[0][0]), each[0][1] != FIRST, each[0]))
        found.append({name: Curves(_by_seed(rows)) for name, rows in ordered})
    return found


def _way(row: Row) -> str:
    """In which ways a method was measured that are not the default: ``forward transformers``."""
    told = ((name, getattr(row, name)) for name in WAYS)
    return ", ".join(f"{name} {value}" for name, value in told if value not in {None, getattr(DEFAULT, name, None)})


def _by_seed(rows: Iterable[Row]) -> dict[int, Curve]:
    """A curve for each seed; of several runs at one rate the newest stands, one that is not INVALID before others."""
    of_seed: dict[int, dict[float, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (row.valid is not False, row.created_at)):
        of_seed[row.seed][row.rate or 0.0] = row
    found = {seed: Curve([by_rate[rate] for rate in sorted(by_rate)]) for seed, by_rate in sorted(of_seed.items())}
    sound = {seed: curve for seed, curve in found.items() if any(row.valid is not False for row in curve.rows)}
    return sound or found
