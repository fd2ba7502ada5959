"""Measures experiments, on this machine or on the nodes of a cluster, and writes the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..measure.machine import device_name, machine_slug, pick_device
from ..opening import open_page
from ..records import store
from ..report.build import report_on
from ..report.comparison import RATIOS_IN_WORDS, ratio_table
from ..report.ending import ending, terminal_width
from . import agenda, cluster, in_time
from .duration import in_words
from .experiments import small, sweep
from .forecast import Clock, Forecast
from .searches import SEARCHES, search

RATIOS_OF = ("bench_today", "bench_traces")  # experiments whose ratios are printed, too


def here(
    names: Sequence[str],
    scale: str,
    results_dir: str | None,
    smoke: bool,
    seed: int,
    minutes: float | None,
    began_s: float,
    opens: bool,
) -> int:
    """Plan all runs, say what they will take, measure them, write the report, say what it says.

    Returns 1 where a method failed.

    Args:
        names: of the experiments.
        scale: ``auto``, ``cpu`` or ``gpu``.
        results_dir: None for this machine's folder.
        smoke: of each experiment one comparison of a few prompts.
        seed: of every comparison.
        minutes: None for as long as it takes.
        began_s: when the program began, by ``time.monotonic``.
        opens: whether the report's page is opened in a browser.
    """
    clock = Clock(None if minutes is None else 60 * minutes, began_s)
    device = pick_device("cuda" if scale == "gpu" else "cpu" if scale == "cpu" else "auto")
    scale = "gpu" if device.type == "cuda" else "cpu"
    folder = Path(results_dir or Path("results") / machine_slug(device))
    why = "" if scale == "gpu" else " (no CUDA GPU is used; SCALE=gpu asks for one)"
    print(f"{scale} scale on {device_name(device)}{why}; records and report: {folder}", flush=True)
    tasks = agenda.tasks_of(_runs(names, scale, str(device), folder, smoke, seed), () if smoke else SEARCHES)
    new = [task for task in tasks if task.searches or task.plans[0].recorded() is None]
    forecast = Forecast(folder)
    for task in new:
        task.estimated_s = agenda.estimate(task, forecast)
    print(agenda.announcement(names, tasks, new, forecast.report_s, minutes), flush=True)
    worst, left_out = in_time.measure(new, folder, forecast, clock)
    if any(name in RATIOS_OF for name in names):
        measured = [task.plans[0].recorded() or [] for task in tasks if task.experiment in RATIOS_OF]
        print(f"\n{ratio_table(measured)}\n\n{RATIOS_IN_WORDS}", flush=True)
    if left_out:
        print(f"\n{agenda.left_out_in_words(left_out)}", flush=True)
    if left_out and next(store.read_all(folder), None) is None:
        print("\nno report: nothing is recorded yet; give more minutes")
        return 1
    print(f"\nwriting the report: about {in_words(forecast.report_s)}", flush=True)
    report_began_s = time.monotonic()
    said, page = finish(folder)
    forecast.report_took(time.monotonic() - report_began_s)
    print(f"\n{said}", flush=True)
    if opens:
        open_page(page)
    return worst


def finish(folder: Path) -> tuple[str, Path]:
    """Write the report of a folder: what is said last, and where the page is."""
    report = report_on(folder)
    return ending(report, terminal_width()), report.page(report.newest)


def on_cluster(
    names: Sequence[str],
    scale: str,
    results_dir: str | None,
    smoke: bool,
    seed: int,
    chosen: Mapping[str, Any],
    opens: bool,
) -> int:
    """The same on the nodes of a SLURM cluster: this machine submits, waits, and writes the report.

    Args:
        chosen: settings of the launcher.
        opens: whether the report's page is opened in a browser.
    """
    partition, has_gpus = cluster.partition(chosen)
    # This machine's own devices and name say nothing of the nodes that will measure.
    scale = scale if scale != "auto" else "gpu" if has_gpus else "cpu"
    folder = Path(results_dir or f"results/slurm-{partition.replace(',', '-')}-{scale}").resolve()
    launcher = cluster.settings(scale, chosen)
    print(f"{scale} scale in SLURM's partition {partition}; records and report: {folder}", flush=True)
    runs = _runs(names, scale, "cuda:0" if scale == "gpu" else "cpu", folder, smoke, seed)
    worst = cluster.measure(cluster.jobs_of(runs, () if smoke else SEARCHES, folder), folder, launcher, search)
    said, page = finish(folder)
    print(f"\n{said}", flush=True)
    if opens:
        open_page(page)
    return worst


def _runs(
    names: Sequence[str], scale: str, device: str, folder: Path, smoke: bool, seed: int
) -> dict[str, list[list[str]]]:
    """By experiment the overrides of each of its runs."""
    common = [f"scale={scale}", f"device={device}", f"results_dir='{folder}'", f"seed={seed}"]
    runs = {name: sweep(name, common) for name in names}
    return {name: small(each) for name, each in runs.items()} if smoke else runs
