"""What is to be measured, in which order, how long it takes, and what of it fits into the given time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import terminal
from ..cli import UserError, warn
from ..compose import compose
from ..measure.plan import Plan, prepare
from ..records import store as records
from ..records.row import Row
from ..report.answer import in_short
from .apart import BROKEN_OFF, run_apart
from .duration import in_words
from .experiments import priority_of
from .forecast import Clock, Forecast
from .progress import Progress
from .searches import SEARCHES
from .trying import OutOfTime

OVERTIME = 0.15  # a comparison may exceed the given minutes by this share of them before it is ended
NAMED = 4  # so many of the comparisons that are left out are listed, per experiment


@dataclass
class Task:
    """A comparison of an experiment, or a search, with the comparisons that it begins with."""

    experiment: str
    overrides: list[str]
    plans: list[Plan]
    searches: bool  # for the largest batch or rate: one search measures several comparisons
    estimated_s: float = 0.0

    @property
    def title(self) -> str:
        """Names it for people."""
        first = self.plans[0]
        c = first.config
        return f"on {c.dataset.name}{f', {c.policy}' if c.under_load else ''}" if self.searches else first.comparison_id

    @property
    def priority(self) -> int:
        """Its place among all comparisons; the most telling has the lowest number."""
        return priority_of(self.plans[0].config)


def tasks_of(runs: Mapping[str, Sequence[list[str]]], searched: Collection[str]) -> list[Task]:
    """Every comparison of each experiment once, in the order of the experiments.

    Args:
        runs: by experiment the overrides of each of its runs.
        searched: the experiments whose runs are searches.
    """
    found: dict[str, Task] = {}
    for name, each in runs.items():
        for one in each:
            config = compose(one)
            each_method = [replace(config, methods=[method]) for method in config.compared_methods]
            begins = each_method if name in searched else [config]
            try:
                task = Task(name, one, [prepare(begin) for begin in begins], name in searched)
            except UserError as error:
                if error.setting != "faults":
                    raise
                warn(f"{name}: left out: {error}")  # one fault needs prompts with text, which the hub alone has
                continue
            found.setdefault(f"{task.searches} {task.plans[0].comparison_id}", task)
    return list(found.values())


def estimate(task: Task, forecast: Forecast) -> float:
    """Seconds that it will take."""
    if task.searches:
        return SEARCHES[task.experiment].seconds(task.plans, forecast.seconds)
    return forecast.seconds(task.plans[0])


def announcement(
    names: Sequence[str], tasks: list[Task], new: list[Task], report_s: float, minutes: float | None
) -> str:
    """What each experiment and the whole will take."""
    lines = ["", "what it takes, estimated:"]
    for name in names:
        every, ours = ([task for task in some if task.experiment == name] for some in (tasks, new))
        if not every:
            lines.append(f"  {name}: none of its comparisons can be measured here")
            continue
        counted = _counted(len(every), "search" if every[0].searches else "comparison")
        recorded = f", {len(every) - len(ours)} of them recorded already" if len(every) > len(ours) else ""
        most = "at most " if every[0].searches else ""
        time_ = f", {most}about {in_words(sum(task.estimated_s for task in ours))}" if ours else ""
        lines.append(f"  {name}: {counted}{recorded}{time_}")
    whole_s = sum(task.estimated_s for task in new) + report_s
    lines.append(f"  all of it, with the report: about {in_words(whole_s)}")
    if minutes is not None:
        lines.append(f"within {minutes:g} minutes: the most telling first; what does not fit is left for the next call")
    return "\n".join(lines)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}{'es' if name.endswith('ch') else 's'}"


class _BrokenOff(Exception):
    """A comparison took longer than what was left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def measure(new: list[Task], results_dir: Path, forecast: Forecast, clock: Clock) -> tuple[int, list[Task]]:
    """Measure what fits into the time, the most telling first. Returns the worst exit code and what was left out."""
    progress = Progress([task.experiment for task in new])
    with progress.drawn():
        return _measure(new, results_dir, forecast, clock, progress)


def _measure(
    new: list[Task], results_dir: Path, forecast: Forecast, clock: Clock, progress: Progress
) -> tuple[int, list[Task]]:
    worst, waiting, left_out, said = 0, list(new), list[Task](), ""

    def fits(plan: Plan) -> bool:
        return forecast.seconds(plan) <= clock.left_s - forecast.report_s

    def measured(plan: Plan) -> None:
        nonlocal worst, said
        if not terminal.quiet():
            heading = [] if task.experiment == said else ["", f"== {task.experiment}"]
            terminal.say(*heading, "")
        said = task.experiment
        code = _run(plan, forecast, clock)
        rows = _rows(plan)
        statuses = {row.status for row in rows}
        # Where memory runs out is what the search for the largest batch looks for, and no failure.
        sought = task.experiment == "largest_batch" and code == 1 and {"oom"} <= statuses <= {"oom", "ok", "skipped"}
        worst = max(worst, 0 if sought else code)
        progress.came_out(in_short(rows) if rows else "nothing")
        if terminal.quiet() and not task.searches:
            for row in rows:
                if row.status not in {"ok", "skipped"}:
                    warn(f"{row.run_id}: {row.status}, {row.status_reason}")

    def after() -> float:
        all_s = sum(estimate(other, forecast) for other in waiting) + forecast.report_s
        return min(all_s, max(0.0, clock.left_s - task.estimated_s))

    while waiting:
        # With a time limit, the cheapest of equal priority come first, so that more fit; else they keep their order.
        task = min(waiting, key=lambda task: (task.priority, task.estimated_s if clock.ends else 0))
        waiting.remove(task)
        progress.begins(task.experiment, task.estimated_s, after)
        try:
            if task.searches:
                SEARCHES[task.experiment].search(task.overrides, results_dir, fits, measured)
            elif fits(task.plans[0]):
                measured(task.plans[0])
            else:
                left_out.append(task)
        except OutOfTime:
            left_out.append(task)
        except _BrokenOff as ended:
            left_out.append(task)
            taken, was = in_words(ended.seconds), in_words(task.estimated_s)
            terminal.say(f"broken off after {taken}: it was estimated to take {was}, and the time is over")
    for task in left_out:
        task.estimated_s = estimate(task, forecast)
    return worst, left_out


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


def left_out_in_words(tasks: list[Task]) -> str:
    """What did not fit into the minutes given, by experiment."""
    lines = []
    for name in dict.fromkeys(task.experiment for task in tasks):
        ours = [task for task in tasks if task.experiment == name]
        counted = _counted(len(ours), "search" if ours[0].searches else "comparison")
        lines.append(f"left out: {name}: {counted}, about {in_words(sum(task.estimated_s for task in ours))}")
        lines += [f"  {task.title}: about {in_words(task.estimated_s)}" for task in ours[:NAMED]]
        lines += [f"  and {len(ours) - NAMED} more"] if len(ours) > NAMED else []
    return "\n".join([*lines, "the same command goes on with these"])
