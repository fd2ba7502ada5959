"""python -m src.reproduce: experiments at the scale of this machine, resumable, then the report."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cli import UserError, guarded, parse_arguments
from .config import CONFIG_DIR
from .jobs import cluster
from .jobs.experiments import experiments

SCALES = ("auto", "cpu", "gpu")
LAUNCHERS = ("here", "slurm")
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
        default=None, metadata={"help": "the most telling first; what does not fit is left for the next call"}
    )
    seed: int = field(default=0, metadata={"help": "of the prompts drawn, their order and random weights"})
    smoke: bool = field(default=False, metadata={"help": "of each experiment one comparison of a few prompts"})
    launcher: str = field(default="here", metadata={"help": "here, or slurm: a job for each comparison"})
    open: bool = field(default=False, metadata={"help": "open the report's page in a browser at the end"})
    slurm: dict[str, Any] | None = field(
        default=None, metadata={"help": "slurm.partition=gpu …: what configs/hydra/launcher/slurm.yaml has"}
    )


def main() -> int:
    """Measure the experiments asked for, here or on a cluster, and write the report. 1 where a method failed."""
    settings = parse_arguments(ReproduceSettings, "reproduce", sys.argv[1:])
    if settings.scale not in SCALES:
        raise UserError("scale", f"unknown '{settings.scale}'", f"choose one of {', '.join(SCALES)}")
    if settings.minutes is not None and not 0 < settings.minutes < float("inf"):
        raise UserError("minutes", f"{settings.minutes:g}", "give minutes above 0, or leave it out")
    if settings.seed < 0:
        raise UserError("seed", f"{settings.seed} is too small", "give a whole number of 0 or more")
    if settings.launcher not in LAUNCHERS:
        raise UserError("launcher", f"unknown '{settings.launcher}'", f"choose one of {', '.join(LAUNCHERS)}")
    names = _names(settings)
    if settings.slurm and settings.launcher != "slurm":
        raise UserError("slurm", "has no effect here", "add launcher=slurm, or leave it out")
    if settings.launcher == "slurm":
        if settings.minutes is not None:
            raise UserError("minutes", "how long nodes take is not known here", "leave it out with launcher=slurm")
        cluster.check()
    # After bad settings, because torch takes seconds to import.
    from .jobs import reproducing

    asked = (names, settings.scale, settings.results_dir, settings.smoke, settings.seed)
    if settings.launcher == "slurm":
        return reproducing.on_cluster(*asked, settings.slurm or {}, settings.open)
    return reproducing.here(*asked, settings.minutes, STARTED_S, settings.open)


def _names(settings: ReproduceSettings) -> Sequence[str]:
    """The experiments asked for, each of which there is."""
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
