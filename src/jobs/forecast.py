"""How long comparisons will take on this machine, corrected by the time that earlier ones have taken.

Kept in ``times.json`` beside the records: the rate of matrix products, measured once, and the time of each comparison.
Where that file is missing or unreadable, estimates begin anew.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

from ..cli import warn
from ..measure.gpus import rate
from ..measure.plan import Plan
from ..records import store as records
from .duration import REACHED, parts_of

FILE = "times.json"
MOST_KEPT = 500  # comparisons: the newest
OTHER_KIND = 0.3  # weight of a comparison of another model, type or protocol; one of the same counts 1
ESTIMATE = 0.1  # weight of the estimate itself
BROKEN_OFF = 1.5  # a comparison that was ended early is assumed to need this many times as long
REPORT_S, REPORT_PER_RECORD_S = 8.0, 0.1


@dataclass(frozen=True)
class Taken:
    """What a comparison has taken: ``fixed_s`` and ``forward_s`` were estimated, ``seconds`` passed until it ended."""

    comparison_id: str
    kind: str
    fixed_s: float
    forward_s: float
    seconds: float
    finished: bool

    def __post_init__(self) -> None:
        """Refuse times that no comparison takes; the file may have been edited.

        Raises:
            ValueError: a time that is none.
        """
        for name in ("fixed_s", "forward_s", "seconds"):
            _positive(name, getattr(self, name))


def _positive(name: str, value: Any) -> float:
    """The number that it is, if it is above 0 and finite. Raises ValueError."""
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def corrected(fixed_s: float, forward_s: float, kind: str, before: Sequence[Taken]) -> float:
    """Seconds of a comparison, from its estimate and from those before it.

    Both parts of an estimate are off by a factor of their own. The factors are fitted by least squares on errors
    relative to the estimate, none being negative: comparisons of the same kind count most, and factors of 1 count a
    little, so that few comparisons do not turn an estimate over.
    """
    finished = [taken for taken in before if taken.finished]
    weights = np.array([*(1.0 if taken.kind == kind else OTHER_KIND for taken in finished), ESTIMATE, ESTIMATE])
    estimates = [taken.fixed_s + taken.forward_s for taken in finished]
    parts = [(taken.fixed_s / all_s, taken.forward_s / all_s) for taken, all_s in zip(finished, estimates, strict=True)]
    ratios = [taken.seconds / all_s for taken, all_s in zip(finished, estimates, strict=True)]
    matrix = np.array([*parts, (1.0, 0.0), (0.0, 1.0)]) * weights[:, None]
    factors, _ = scipy.optimize.nnls(matrix, np.array([*ratios, 1.0, 1.0]) * weights)
    return float(factors @ np.array([fixed_s, forward_s]))


class Forecast:
    """Estimates of one machine's comparisons, whose records go below ``results_dir``."""

    def __init__(self, results_dir: Path) -> None:
        self._path = results_dir / FILE
        self._rates: dict[str, float] = {}
        self._taken: list[Taken] = []
        self._report_s: float | None = None
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            rates = {str(name): _positive(name, value) for name, value in content["rates"].items()}
            taken = [Taken(**each) for each in content["taken"]]
            report_s = content["report_s"] and _positive("report_s", content["report_s"])
            self._rates, self._taken, self._report_s = rates, taken, report_s
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            warn(f"{self._path}: estimates begin anew ({type(error).__name__}: {error})")

    def seconds(self, plan: Plan, times: float = 1.0) -> float:
        """Estimated seconds of a comparison, from the start of its process to its end.

        Args:
            times: as if it had so many times as many prompts in each batch.
        """
        fixed_s, forward_s = self._estimate(plan, times)
        found = corrected(fixed_s, forward_s, _kind(plan), self._taken)
        broken_off = [t.seconds for t in self._taken if t.comparison_id == plan.comparison_id and not t.finished]
        return max([found, *(BROKEN_OFF * seconds for seconds in broken_off)])

    def took(self, plan: Plan, seconds: float, finished: bool = True) -> None:
        """Learn from a comparison that ended after so many seconds; not ``finished``: it was broken off then."""
        fixed_s, forward_s = self._estimate(plan)
        self._taken.append(Taken(plan.comparison_id, _kind(plan), fixed_s, forward_s, seconds, finished))
        self._keep()

    @property
    def report_s(self) -> float:
        """Estimated seconds of writing the report."""
        return REPORT_S + REPORT_PER_RECORD_S * len(self._taken) if self._report_s is None else self._report_s

    def report_took(self, seconds: float) -> None:
        """Learn how long the report took."""
        self._report_s = seconds
        self._keep()

    def _estimate(self, plan: Plan, times: float = 1.0) -> tuple[float, float]:
        key = f"{plan.device_name}, {plan.config.dtype}"
        if key not in self._rates:
            self._rates[key] = rate(plan.device, plan.dtype)
        parts = parts_of(plan, times)
        return parts.fixed_s, parts.operations / (REACHED[plan.device.type] * self._rates[key])

    def _keep(self) -> None:
        content: dict[str, Any] = {
            "rates": self._rates,
            "taken": [asdict(each) for each in self._taken[-MOST_KEPT:]],
            "report_s": self._report_s,
        }
        try:
            records.write_json(self._path, content)
        except OSError as error:  # a measurement needs no estimate
            warn(f"{self._path}: estimates are not kept ({error.strerror})")


class Clock:
    """The time that a run was given.

    Args:
        seconds: None for as long as it takes.
        began_s: when it began, by ``time.monotonic``.
    """

    def __init__(self, seconds: float | None, began_s: float) -> None:
        self._began_s, self._seconds = began_s, seconds

    @property
    def ends(self) -> bool:
        """Whether there is an end."""
        return self._seconds is not None

    @property
    def left_s(self) -> float:
        """Seconds that are left; below 0 where it is over."""
        return float("inf") if self._seconds is None else self._began_s + self._seconds - time.monotonic()

    def grace_s(self, share: float) -> float | None:
        """Seconds until it is over by this share of it; None where there is no end."""
        return None if self._seconds is None else self.left_s + share * self._seconds


def _kind(plan: Plan) -> str:
    c = plan.config
    return f"{c.model.name}, {c.dtype}, {c.loadbit} bit, {c.protocol}"
