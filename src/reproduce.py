"""python -m src.reproduce: experiments at the scale of this machine, resumable, then the report."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.cli import UserError, guarded, parse_arguments

SCALES = ("auto", "cpu", "gpu")
LAUNCHERS = ("here", "slurm")
SEARCHED = "largest_batch"
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
    smoke: bool = field(default=False, metadata={"help": "of each experiment one comparison of a few prompts"})
    launcher: str = field(default="here", metadata={"help": "here, or slurm: a job for each comparison"})
    slurm: dict[str, Any] | None = field(
        default=None, metadata={"help": "slurm.partition=gpu …: what configs/hydra/launcher/slurm.yaml has"}
    )


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
    from src import agenda  # after bad settings: torch takes seconds to import
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
    runs = _runs(names, _overrides(scale, str(device), results_dir), settings.smoke)
    tasks = agenda.tasks_of(runs, None if settings.smoke else SEARCHED)
    new = [task for task in tasks if task.searches or task.plans[0].recorded() is None]
    forecast = Forecast(results_dir)
    for task in new:
        task.estimated_s = agenda.estimate(task, forecast)
    print(agenda.announcement(names, tasks, new, forecast.report_s, settings.minutes), flush=True)
    worst, left_out = agenda.measure(new, results_dir, forecast, clock)
    if "bench" in names:
        bench = [task.plans[0].recorded() or [] for task in tasks if task.experiment == "bench"]
        print(f"\n{ratio_table(bench)}\n\n{RATIOS}", flush=True)
    if left_out:
        print(f"\n{agenda.left_out_in_words(left_out)}", flush=True)
    if left_out and next(records.read_all(results_dir), None) is None:
        print("\nno report: nothing is recorded yet; give more minutes")
        return 1
    began_s = time.monotonic()
    print("\nreport:", *build(results_dir), sep="\n  ")
    forecast.report_took(time.monotonic() - began_s)
    return worst


def _overrides(scale: str, device: str, results_dir: Path) -> list[str]:
    """What all runs have in common."""
    return [f"scale={scale}", f"device={device}", f"results_dir='{results_dir}'"]


def _runs(names: Sequence[str], overrides: list[str], smoke: bool) -> dict[str, list[list[str]]]:
    """By experiment the overrides of each of its runs."""
    from src.sweeps import small, sweep

    return {name: small(sweep(name, overrides)) if smoke else sweep(name, overrides) for name in names}


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
    overrides = _overrides(scale, "cuda:0" if scale == "gpu" else "cpu", results_dir)
    runs = _runs(names, overrides, settings.smoke)
    searched = "" if settings.smoke else SEARCHED
    worst = cluster.measure(cluster.tasks(runs, searched, results_dir), results_dir, launcher, search)
    print("\nreport:", *build(results_dir), sep="\n  ")
    return worst


def _names(settings: ReproduceSettings) -> Sequence[str]:
    """The experiments asked for, each of which there is."""
    from src.config import CONFIG_DIR
    from src.sweeps import experiments

    if settings.experiment == "all":
        return experiments()
    there = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
    names = list(dict.fromkeys(settings.experiment.split(",")))
    for name in names:
        if name not in there:
            raise UserError("experiment", f"unknown '{name}'", f"choose all, or of {', '.join(there)}")
    return names


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
