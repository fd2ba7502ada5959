"""Measures the comparisons of an agenda, the most telling first, as far as they fit into the time."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from .. import terminal
from ..cli import warn
from ..measure.plan import Plan
from ..records import store as records
from ..records.row import Row
from ..report.answer import in_short
from .agenda import Task, estimate
from .apart import BROKEN_OFF, run_apart
from .duration import in_words
from .forecast import Clock, Forecast
from .progress import Progress
from .searches import SEARCHES
from .trying import OutOfTime

OVERTIME = 0.15  # a comparison may exceed the given minutes by this share of them before it is ended


class _BrokenOff(Exception):
    """A comparison took longer than what was left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def measure(new: list[Task], results_dir: Path, forecast: Forecast, clock: Clock) -> tuple[int, list[Task]]:
    """Measure what fits into the time, the most telling first. Returns the worst exit code and what was left out."""
    progress = Progress([task.experiment for task in new])
    carrying = _Carrying(list(new), results_dir, forecast, clock, progress)
    with progress.drawn():
        while carrying.waiting:
            carrying.take_next()
    for task in carrying.left_out:
        task.estimated_s = estimate(task, forecast)
    return carrying.worst, carrying.left_out


class _Carrying:
    """An agenda while it is carried out: what waits, what was left out, and the worst exit code so far."""

    def __init__(
        self, waiting: list[Task], results_dir: Path, forecast: Forecast, clock: Clock, progress: Progress
    ) -> None:
        self.waiting, self.left_out, self.worst = waiting, list[Task](), 0
        self._results_dir, self._forecast, self._clock, self._progress = results_dir, forecast, clock, progress
        self._said = ""  # the experiment whose heading was printed last

    def take_next(self) -> None:
        """Measure the most telling task that waits, or leave it out."""
        # With a time limit, the cheapest of equal priority come first, so that more fit; else they keep their order.
        task = min(self.waiting, key=lambda task: (task.priority, task.estimated_s if self._clock.ends else 0))
        self.waiting.remove(task)
        self._progress.begins(task.experiment, task.estimated_s, lambda: self._seconds_after(task))
        try:
            if task.searches:
                search = SEARCHES[task.experiment].search
                search(task.overrides, self._results_dir, self._fits, lambda plan: self._measure(task, plan))
            elif self._fits(task.plans[0]):
                self._measure(task, task.plans[0])
            else:
                self.left_out.append(task)
        except OutOfTime:
            self.left_out.append(task)
        except _BrokenOff as ended:
            self.left_out.append(task)
            taken, was = in_words(ended.seconds), in_words(task.estimated_s)
            terminal.say(f"broken off after {taken}: it was estimated to take {was}, and the time is over")

    def _fits(self, plan: Plan) -> bool:
        return self._forecast.seconds(plan) <= self._clock.left_s - self._forecast.report_s

    def _seconds_after(self, task: Task) -> float:
        """Estimated seconds of all that comes after a task, the report among it."""
        all_s = sum(estimate(other, self._forecast) for other in self.waiting) + self._forecast.report_s
        return min(all_s, max(0.0, self._clock.left_s - task.estimated_s))

    def _measure(self, task: Task, plan: Plan) -> None:
        if not terminal.quiet():
            heading = [] if task.experiment == self._said else ["", f"== {task.experiment}"]
            terminal.say(*heading, "")
        self._said = task.experiment
        code = _run(plan, self._forecast, self._clock)
        rows = _rows(plan)
        statuses = {row.status for row in rows}
        # Where memory runs out is what the search for the largest batch looks for, and no failure.
        sought = task.experiment == "largest_batch" and code == 1 and {"oom"} <= statuses <= {"oom", "ok", "skipped"}
        self.worst = max(self.worst, 0 if sought else code)
        self._progress.came_out(in_short(rows) if rows else "nothing")
        if terminal.quiet() and not task.searches:
            for row in rows:
                if row.status not in {"ok", "skipped"}:
                    warn(f"{row.run_id}: {row.status}, {row.status_reason}")


def _rows(plan: Plan) -> list[Row]:
    """What is recorded of a comparison, failures too."""
    found = []
    for each in plan.methods:
        with contextlib.suppress(ValueError):  # it ended before it could write a row, and printed why
            found.append(records.read(plan.results_dir / plan.run_id(each.method)).row)
    return found


def _run(plan: Plan, forecast: Forecast, clock: Clock) -> int:
    """Measure one comparison and learn from the time it took.

    Raises:
        _BrokenOff: the time for all of them was over, and more.
    """
    began_s, over_s = time.monotonic(), clock.grace_s(OVERTIME)
    code = run_apart(plan.config, plan, None if over_s is None else max(1.0, over_s - forecast.report_s))
    seconds = time.monotonic() - began_s
    if code in {0, BROKEN_OFF}:  # the time until a failure says nothing about a measurement
        forecast.took(plan, seconds, finished=code == 0)
    if code == BROKEN_OFF:
        raise _BrokenOff(seconds)
    return code
