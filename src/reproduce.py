"""python -m src.reproduce: experiments at the scale of this machine, resumable, then the report."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.cli import UserError, guarded, parse_arguments

if TYPE_CHECKING:
    from src.measure.plan import Plan

SCALES = ("auto", "cpu", "gpu")
LAUNCHERS = ("here", "slurm")
EXPERIMENTS = (
    "readme_table", "time_by_dataset", "memory_and_utilization", "speedup_by_batch_size", "dataset_level",
    "batch_cost", "speedup_predictors", "largest_batch", "generation", "today", "traces", "faults",
)  # fmt: skip
SMOKE = ("readme_table", "generation")
SEARCHED = "largest_batch"
START_SECONDS = 1.5  # of a comparison, beside what is estimated


@dataclass
class ReproduceSettings:
    """Run experiments at the scale of this machine and write the report. Goes on where it was cut off."""

    experiment: str = field(
        default="all", metadata={"help": "all of the paper's and beyond, or names of configs/experiment/: a,b"}
    )
    scale: str = field(default="auto", metadata={"help": "auto (gpu where there is a CUDA GPU), cpu or gpu"})
    results_dir: str | None = field(default=None, metadata={"help": "where records go; default results/<machine>"})
    minutes: float | None = field(
        default=None, metadata={"help": "cheapest comparisons first; what is estimated to go beyond this is left out"}
    )
    smoke: bool = field(default=False, metadata={"help": "a few prompts only: try the whole path in under a minute"})
    launcher: str = field(default="here", metadata={"help": "here, or slurm: a job for each comparison"})
    slurm: dict[str, Any] | None = field(
        default=None, metadata={"help": "slurm.partition=gpu …: what configs/hydra/launcher/slurm.yaml has"}
    )


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


def main() -> int:
    """Plan all runs, say what they will take, measure them, write the report. 1 where a method failed."""
    settings = parse_arguments(ReproduceSettings, "src.reproduce", sys.argv[1:])
    if settings.scale not in SCALES:
        raise UserError("scale", f"unknown '{settings.scale}'", f"choose one of {', '.join(SCALES)}")
    if settings.minutes is not None and not settings.minutes > 0:
        raise UserError("minutes", f"{settings.minutes:g}", "give minutes above 0, or leave it out")
    if settings.launcher not in LAUNCHERS:
        raise UserError("launcher", f"unknown '{settings.launcher}'", f"choose one of {', '.join(LAUNCHERS)}")
    names = _names(settings)
    if settings.launcher == "slurm":
        return _on_cluster(settings, names)
    from src.apart import run_apart
    from src.config import compose
    from src.largest_batch import search
    from src.measure.estimate import in_words
    from src.measure.machine import device_name, machine_slug, pick_device
    from src.measure.plan import prepare
    from src.report.build import RATIOS, build
    from src.report.tables import ratio_table

    device = pick_device("cuda" if settings.scale == "gpu" else "cpu" if settings.scale == "cpu" else "auto")
    scale = "gpu" if device.type == "cuda" else "cpu"
    results_dir = Path(settings.results_dir or Path("results") / machine_slug(device))
    overrides = _overrides(scale, str(device), results_dir, settings.smoke)
    why = "" if scale == "gpu" else " (no CUDA GPU is used; SCALE=gpu asks for one)"
    print(f"{scale} scale on {device_name(device)}{why}; records and report: {results_dir}", flush=True)
    runs = {name: sweep(name, overrides) for name in names}
    plans = {
        name: [prepare(compose(one)[0]) for one in each] if name != SEARCHED else [] for name, each in runs.items()
    }
    left_out: list[Plan] = []
    if settings.minutes is not None:
        every = [plan for each in plans.values() for plan in each]
        taken, left_out = _within(every, 60 * settings.minutes)
        plans = {name: [plan for plan in taken if plan in each] for name, each in plans.items()}
    worst = 0
    for number, (name, each) in enumerate(plans.items(), 1):
        new = [plan for plan in each if plan.recorded() is None]
        # On a GPU each run says so itself: to measure the rate here would keep memory of the device while it is timed.
        seconds = sum(START_SECONDS + plan.seconds() for plan in new) if scale == "cpu" else 0.0
        time = f", about {in_words(seconds)}" if seconds else ""
        counted = f"{len(each)} comparisons, {len(each) - len(new)} of them recorded already{time}"
        print(f"\n== {number}/{len(plans)} {name}: {counted if name != SEARCHED else 'a search'}", flush=True)
        if name == SEARCHED:
            for one in runs[name]:
                search(one, results_dir)
        for plan in new:
            print(flush=True)
            worst = max(worst, run_apart(plan.config))
    if "bench" in plans:
        print(f"\n{ratio_table([plan.recorded() or [] for plan in plans['bench']])}\n\n{RATIOS}", flush=True)
    for plan in left_out:
        print(f"left out: {plan.comparison_id}, about {in_words(plan.seconds())}")
    print("\nreport:", *build(results_dir), sep="\n  ")
    return worst


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
        return SMOKE if settings.smoke else EXPERIMENTS
    there = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
    names = list(dict.fromkeys(settings.experiment.split(",")))
    for name in names:
        if name not in there:
            raise UserError("experiment", f"unknown '{name}'", f"choose all, or of {', '.join(there)}")
    return names


def _within(plans: list[Plan], seconds: float) -> tuple[list[Plan], list[Plan]]:
    """The cheapest plans that fit into so many seconds, those that are recorded costing nothing; and the others."""
    taken: list[Plan] = []
    left_out: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: plan.seconds()):
        cost = 0.0 if plan.recorded() is not None else plan.seconds()
        seconds -= cost
        (taken if seconds >= 0 else left_out).append(plan)
    return taken, left_out


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
