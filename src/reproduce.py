"""python -m src.reproduce: experiments at the scale of this machine, resumable, then the report."""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import EXIT_BAD_INPUT, UserError, guarded, parse_arguments

if TYPE_CHECKING:
    from src.config import Config
    from src.forecast import Clock, Forecast
    from src.measure.plan import Plan

SCALES = ("auto", "cpu", "gpu")
LAUNCHERS = ("here", "slurm")
LAST = 1000  # the priority of an experiment that has none
SMOKE = ("readme_table", "generation")
SEARCHED = "largest_batch"
OVERTIME = 0.15  # share of the minutes given that a comparison may run on beyond them before it is broken off
NAMED = 4  # comparisons of an experiment that are named where they are left out
STARTED_S = time.monotonic()


@dataclass
class ReproduceSettings:
    """Run experiments at the scale of this machine and write the report. Goes on where it was cut off."""

    experiment: str = field(
        default="all", metadata={"help": "all of the paper's and beyond, or names of configs/experiment/: a,b"}
    )
    scale: str = field(default="auto", metadata={"help": "auto (gpu where there is a CUDA GPU), cpu or gpu"})
    results_dir: str | None = field(default=None, metadata={"help": "where records go; default results/<machine>"})
    minutes: float | None = field(
        default=None, metadata={"help": "what tells most first; what does not fit is left for the next call"}
    )
    smoke: bool = field(default=False, metadata={"help": "a few prompts only: try the whole path in under a minute"})
    launcher: str = field(default="here", metadata={"help": "here, or slurm: a job for each comparison"})
    slurm: dict[str, Any] | None = field(
        default=None, metadata={"help": "slurm.partition=gpu …: what configs/hydra/launcher/slurm.yaml has"}
    )


def experiments() -> tuple[str, ...]:
    """The experiments of ``make reproduce``: those whose YAML gives them a priority, in that order."""
    from omegaconf import OmegaConf

    from src.config import CONFIG_DIR

    read = {path.stem: OmegaConf.load(path) for path in sorted((CONFIG_DIR / "experiment").glob("*.yaml"))}
    places = {name: content.priority["any"] for name, content in read.items() if "priority" in content}
    return tuple(sorted(places, key=lambda name: int(places[name])))


def sweep(experiment: str, overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of an experiment: its own, and one combination of what it sweeps."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from src.config import compose

    chosen = [f"experiment={experiment}", *overrides]
    _, axes = compose(chosen)
    parsed = [OverridesParser.create().parse_override(f"{key}={choices}") for key, choices in axes.items()]
    values = [
        [f"{axis.key_or_group}={value}" for value in axis.sweep_string_iterator()] if axis.is_sweep_override() else
        [str(axis.input_line)]
        for axis in parsed
    ]  # fmt: skip
    return [[*chosen, *combination] for combination in itertools.product(*values)]


@dataclass
class Task:
    """A comparison of an experiment; of the search, the ones that it begins with."""

    experiment: str
    overrides: list[str]
    plans: list[Plan]
    estimated_s: float = 0.0

    @property
    def searches(self) -> bool:
        """Whether it is a search, which measures more than one."""
        return self.experiment == SEARCHED

    @property
    def title(self) -> str:
        """Names it for people."""
        first = self.plans[0]
        return f"on {first.config.dataset.name}" if self.searches else first.comparison_id

    @property
    def priority(self) -> int:
        """Its place: what tells most has the lowest."""
        return priority_of(self.plans[0].config)


def priority_of(config: Config) -> int:
    """Where an experiment's comparison stands among all others, by its YAML: that of its model, else of any."""
    return config.priority.get(config.model.name, config.priority.get("any", LAST))


def main() -> int:
    """Plan all runs, say what they will take, measure them, write the report. 1 where a method failed."""
    settings = parse_arguments(ReproduceSettings, "src.reproduce", sys.argv[1:])
    if settings.scale not in SCALES:
        raise UserError("scale", f"unknown '{settings.scale}'", f"choose one of {', '.join(SCALES)}")
    if settings.minutes is not None and not 0 < settings.minutes < float("inf"):
        raise UserError("minutes", f"{settings.minutes:g}", "give minutes above 0, or leave it out")
    if settings.launcher not in LAUNCHERS:
        raise UserError("launcher", f"unknown '{settings.launcher}'", f"choose one of {', '.join(LAUNCHERS)}")
    names = _names(settings)
    if settings.launcher == "slurm":
        return _on_cluster(settings, names)
    from src.forecast import Clock, Forecast
    from src.measure import records
    from src.measure.machine import device_name, machine_slug, pick_device
    from src.report.build import RATIOS, build
    from src.report.tables import ratio_table

    clock = Clock(None if settings.minutes is None else 60 * settings.minutes, STARTED_S)
    device = pick_device("cuda" if settings.scale == "gpu" else "cpu" if settings.scale == "cpu" else "auto")
    scale = "gpu" if device.type == "cuda" else "cpu"
    results_dir = Path(settings.results_dir or Path("results") / machine_slug(device))
    why = "" if scale == "gpu" else " (no CUDA GPU is used; SCALE=gpu asks for one)"
    print(f"{scale} scale on {device_name(device)}{why}; records and report: {results_dir}", flush=True)
    tasks = _tasks(names, _overrides(scale, str(device), results_dir, settings.smoke))
    new = [task for task in tasks if task.searches or task.plans[0].recorded() is None]
    forecast = Forecast(results_dir)
    for task in new:
        task.estimated_s = _seconds(task, forecast)
    print(_announcement(names, tasks, new, forecast.report_s, settings.minutes), flush=True)
    worst, left_out = _measure(new, results_dir, forecast, clock)
    if "bench" in names:
        bench = [task.plans[0].recorded() or [] for task in tasks if task.experiment == "bench"]
        print(f"\n{ratio_table(bench)}\n\n{RATIOS}", flush=True)
    if left_out:
        print(f"\n{_left_out(left_out)}", flush=True)
    if left_out and next(records.read_all(results_dir), None) is None:
        print("\nno report: nothing is recorded yet; give more minutes")
        return 1
    began_s = time.monotonic()
    print("\nreport:", *build(results_dir), sep="\n  ")
    forecast.report_took(time.monotonic() - began_s)
    return worst


def _tasks(names: Sequence[str], overrides: list[str]) -> list[Task]:
    """Every comparison once, those that tell most first; of those that tell as much, the order of their experiments."""
    from src.config import compose
    from src.measure.plan import prepare

    found: dict[str, Task] = {}
    for name in names:
        for one in sweep(name, overrides):
            config, _ = compose(one)
            first = [[f"methods=[{method}]"] for method in config.compared_methods] if name == SEARCHED else [[]]
            task = Task(name, one, [prepare(compose([*one, *added])[0]) for added in first])
            found.setdefault(f"{task.searches} {task.plans[0].comparison_id}", task)
    return sorted(found.values(), key=lambda task: task.priority)


def _seconds(task: Task, forecast: Forecast) -> float:
    from src.largest_batch import seconds

    return seconds(task.plans, forecast.seconds) if task.searches else forecast.seconds(task.plans[0])


def _announcement(
    names: Sequence[str], tasks: list[Task], new: list[Task], report_s: float, minutes: float | None
) -> str:
    """What each experiment and the whole will take."""
    from src.measure.duration import in_words

    lines = ["", "what it takes, estimated:"]
    for name in names:
        every, ours = ([task for task in some if task.experiment == name] for some in (tasks, new))
        if not every:
            lines.append(f"  {name}: its comparisons are among those of the others")
            continue
        counted = _counted(len(every), "search" if name == SEARCHED else "comparison")
        recorded = f", {len(every) - len(ours)} of them recorded already" if len(every) > len(ours) else ""
        most = "at most " if name == SEARCHED else ""
        time_ = f", {most}about {in_words(sum(task.estimated_s for task in ours))}" if ours else ""
        lines.append(f"  {name}: {counted}{recorded}{time_}")
    whole_s = sum(task.estimated_s for task in new) + report_s
    lines.append(f"  all of it, with the report: about {in_words(whole_s)}")
    if minutes is not None:
        lines.append(f"within {minutes:g} minutes: what tells most first; what does not fit is left for the next call")
    return "\n".join(lines)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}{'es' if name.endswith('ch') else 's'}"


class _BrokenOff(Exception):
    """A comparison took longer than what was left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


def _measure(new: list[Task], results_dir: Path, forecast: Forecast, clock: Clock) -> tuple[int, list[Task]]:
    """Measure what fits into the time, in turn; the worst exit code, and what was left out."""
    from src.largest_batch import OutOfTime, search
    from src.measure.duration import in_words

    worst, waiting, left_out, said = 0, list(new), list[Task](), ""

    def fits(plan: Plan) -> bool:
        return forecast.seconds(plan) <= clock.left_s - forecast.report_s

    def measured(plan: Plan) -> None:
        nonlocal worst, said
        if task.experiment != said:
            print(f"\n== {task.experiment}", flush=True)
            said = task.experiment
        print(flush=True)
        worst = max(worst, _run(plan, forecast, clock))

    while waiting:
        # Of those that tell as much the cheapest first, where time ends: so more of them fit.
        task = min(waiting, key=lambda task: (task.priority, task.estimated_s if clock.ends else 0))
        waiting.remove(task)
        try:
            if task.searches:
                search(task.overrides, results_dir, fits, measured)
            elif fits(task.plans[0]):
                measured(task.plans[0])
            else:
                left_out.append(task)
        except OutOfTime:
            left_out.append(task)
        except _BrokenOff as ended:
            left_out.append(task)
            estimate, taken = in_words(task.estimated_s), in_words(ended.seconds)
            print(f"broken off after {taken}: it was estimated to take {estimate}, and the time is over", flush=True)
    for task in left_out:
        task.estimated_s = _seconds(task, forecast)
    return worst, left_out


def _run(plan: Plan, forecast: Forecast, clock: Clock) -> int:
    """Measure one comparison and learn from the time it took.

    Raises:
        _BrokenOff: the time for all of them was over, and more.
    """
    from src.apart import BROKEN_OFF, run_apart

    began_s, over_s = time.monotonic(), clock.grace_s(OVERTIME)
    code = run_apart(plan.config, None if over_s is None else max(1.0, over_s - forecast.report_s))
    seconds = time.monotonic() - began_s
    if code != EXIT_BAD_INPUT:  # which it ends with before it has begun
        forecast.took(plan, seconds, finished=code != BROKEN_OFF)
    if code == BROKEN_OFF:
        raise _BrokenOff(seconds)
    return code


def _left_out(tasks: list[Task]) -> str:
    """What did not fit into the minutes given, by experiment."""
    from src.measure.duration import in_words

    lines = []
    for name in dict.fromkeys(task.experiment for task in tasks):
        ours = [task for task in tasks if task.experiment == name]
        counted = _counted(len(ours), "search" if name == SEARCHED else "comparison")
        lines.append(f"left out: {name}: {counted}, about {in_words(sum(task.estimated_s for task in ours))}")
        lines += [f"  {task.title}: about {in_words(task.estimated_s)}" for task in ours[:NAMED]]
        lines += [f"  and {len(ours) - NAMED} more"] if len(ours) > NAMED else []
    return "\n".join([*lines, "the same command goes on with these"])


def _overrides(scale: str, device: str, results_dir: Path, smoke: bool) -> list[str]:
    """What all runs have in common."""
    overrides = [f"scale={scale}", f"device={device}", f"results_dir='{results_dir}'"]
    if smoke:
        overrides += ["num_prompts=16", "batch_size=8", "repeats=2", "verify_batches=1", "dataset.source=profile"]
        overrides += ["isolate=false", "utilization_loop_s=0", "sampler_overhead_s=0"]
    return overrides


def _on_cluster(settings: ReproduceSettings, names: Sequence[str]) -> int:
    """The same on the nodes of a SLURM cluster: this machine submits, waits, and writes the report."""
    from src import cluster

    if settings.minutes is not None:
        raise UserError("minutes", "how long nodes take is not known here", "leave it out with launcher=slurm")
    cluster.check()
    chosen = settings.slurm or {}
    partition, has_gpus = cluster.partition(chosen)
    # This machine's own devices and name say nothing of the nodes that will measure.
    scale = settings.scale if settings.scale != "auto" else "gpu" if has_gpus else "cpu"
    results_dir = Path(settings.results_dir or f"results/slurm-{partition.replace(',', '-')}-{scale}").resolve()
    launcher = cluster.settings(scale, chosen)
    from src.largest_batch import search  # torch, which takes seconds, once SLURM has answered
    from src.report.build import build

    print(f"{scale} scale in SLURM's partition {partition}; records and report: {results_dir}", flush=True)
    overrides = _overrides(scale, "cuda:0" if scale == "gpu" else "cpu", results_dir, settings.smoke)
    runs = {name: sweep(name, overrides) for name in names}
    worst = cluster.measure(cluster.tasks(runs, SEARCHED, results_dir), results_dir, launcher, search)
    print("\nreport:", *build(results_dir), sep="\n  ")
    return worst


def _names(settings: ReproduceSettings) -> Sequence[str]:
    """The experiments asked for, each of which there is."""
    from src.config import CONFIG_DIR

    if settings.experiment == "all":
        return SMOKE if settings.smoke else experiments()
    there = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
    names = list(dict.fromkeys(settings.experiment.split(",")))
    for name in names:
        if name not in there:
            raise UserError("experiment", f"unknown '{name}'", f"choose all, or of {', '.join(there)}")
    return names


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
