"""python -m src.reproduce: experiments at the scale of this machine, resumable, then the report."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from src.cli import UserError, guarded, parse_arguments

if TYPE_CHECKING:
    from src.measure.plan import Plan

SCALES = ("auto", "cpu", "gpu")


@dataclass
class ReproduceSettings:
    """Run an experiment at the scale of this machine and write the report. Goes on where it was cut off."""

    experiment: str = field(default="readme_table", metadata={"help": "one of configs/experiment/, <name>_gpu first"})
    scale: str = field(default="auto", metadata={"help": "auto (gpu where there is a CUDA GPU), cpu or gpu"})
    results_dir: str | None = field(default=None, metadata={"help": "where records go; default results/<machine>"})
    minutes: float | None = field(
        default=None, metadata={"help": "cheapest comparisons first; what is estimated to go beyond this is left out"}
    )
    smoke: bool = field(default=False, metadata={"help": "a few prompts only: try the whole path in under a minute"})


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
    from src.config import CONFIG_DIR, compose
    from src.measure.estimate import in_words
    from src.measure.machine import device_name, machine_slug, pick_device
    from src.measure.plan import prepare
    from src.report.build import RATIOS, build
    from src.report.tables import comparison_table, ratio_table, title
    from src.worker import run_apart

    device = pick_device("cuda" if settings.scale == "gpu" else "cpu" if settings.scale == "cpu" else "auto")
    scale = "gpu" if device.type == "cuda" else "cpu"
    results_dir = Path(settings.results_dir or Path("results") / machine_slug(device))
    overrides = [f"scale={scale}", f"device={device}", f"results_dir='{results_dir}'"]
    if settings.smoke:
        overrides += ["num_prompts=16", "batch_size=8", "repeats=2", "verify_batches=1", "dataset.source=profile"]
        overrides += ["isolate=false", "utilization_loop_s=0", "sampler_overhead_s=0"]
    on_gpu = f"{settings.experiment}_gpu"
    experiment = on_gpu if scale == "gpu" and _exists(on_gpu) else settings.experiment
    if not _exists(experiment):
        choices = ", ".join(sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml")))
        raise UserError("experiment", f"unknown '{experiment}'", f"choose one of {choices}")
    plans = [prepare(compose(run_overrides)[0]) for run_overrides in sweep(experiment, overrides)]
    left_out: list[Plan] = []
    if settings.minutes is not None:
        plans, left_out = _within(plans, 60 * settings.minutes)
    new = [plan for plan in plans if plan.recorded() is None]
    first = (plans + left_out)[0].config
    why = "" if scale == "gpu" else " (no CUDA GPU is used; SCALE=gpu asks for one)"
    # On a GPU each run says so itself: to measure the rate here would keep memory of the device while it is timed.
    time = f"about {in_words(sum(plan.seconds() for plan in new))} to measure" if scale == "cpu" else "minutes each"
    print(
        f"{experiment}, {scale} scale on {device_name(device)}{why}: {first.num_prompts:,} prompts.\n"
        f"{len(plans)} comparisons, {len(plans) - len(new)} of them recorded already; {time}.",
        flush=True,
    )
    worst = 0
    for number, plan in enumerate(plans, 1):
        print(f"\n[{number}/{len(plans)}]", flush=True)
        if (found := plan.recorded()) is None:
            worst = max(worst, run_apart(plan.config))
        else:
            rows = [record.row for record in found]
            print(f"{title(rows[0])}\n\n{comparison_table(rows)}", flush=True)
    if settings.experiment == "bench":
        print(f"\n{ratio_table([plan.recorded() or [] for plan in plans])}\n\n{RATIOS}", flush=True)
    for plan in left_out:
        print(f"left out: {plan.comparison_id}, about {in_words(plan.seconds())}")
    if plans:
        print("\nreport:", *build(results_dir), sep="\n  ")
    return worst


def _exists(experiment: str) -> bool:
    from src.config import CONFIG_DIR

    return (CONFIG_DIR / "experiment" / f"{experiment}.yaml").is_file()


def _within(plans: list[Plan], seconds: float) -> tuple[list[Plan], list[Plan]]:
    """The cheapest plans that fit into so many seconds, those that are recorded costing nothing; and the others."""
    taken: list[Plan] = []
    left_out: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: plan.seconds()):
        cost = 0.0 if plan.recorded() is not None else plan.seconds()
        seconds -= cost
        (taken if seconds >= 0 else left_out).append(plan)
    return taken, left_out


if __name__ == "__main__":
    sys.exit(guarded(main))
