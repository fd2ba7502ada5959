"""What is to be measured, how long it takes, and how both are said."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..cli import UserError, warn
from ..compose import compose
from ..measure.plan import Plan, prepare
from .duration import in_words
from .experiments import priority_of
from .forecast import Forecast
from .searches import SEARCHES

NAMED = 4  # so many of the comparisons that are left out are listed, per experiment


@dataclass
class Task:
    """A comparison of an experiment, or a search, with the comparisons that it begins with."""

    experiment: str
    overrides: list[str]
    plans: list[Plan]
    searches: bool  # for the largest batch or rate: one search measures several comparisons
    estimated_s: float = 0.0
    also_of: list[str] = field(default_factory=list)  # other experiments that the same comparison belongs to

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
            first = found.setdefault(f"{task.searches} {task.plans[0].comparison_id}", task)
            if first is not task:
                first.also_of.append(name)
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
            owners = list(dict.fromkeys(task.experiment for task in tasks if name in task.also_of))
            shared = f"its comparisons are those of {' and '.join(owners)}"
            lines.append(f"  {name}: {shared if owners else 'none of its comparisons can be measured here'}")
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
