"""What can be asked of advice: its own settings, and those of a run that it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from ..cli import UserError, parse_arguments
from ..places import command_line

# Settings of the command run that say what is served, by what and on what; the others say how a run is measured.
COMPOSED = (
    "dataset", "model", "device", "dtype", "loadbit", "forward", "num_prompts", "packing", "seed", "results_dir",
    "arrivals", "burstiness", "trace",
)  # fmt: skip


@dataclass
class AdviseSettings:
    """Advise which method and batch size to use for a dataset and model on this machine, from predicted times.

    With rate=, prompts arrive one by one: which method, policy and batch size keep slo_ms, and up to which rate.
    Also takes these settings of run: dataset, dataset.…, model, model.…, device, dtype, loadbit, forward,
    num_prompts, packing, seed, results_dir; with rate= arrivals, burstiness, trace. The first call calibrates for about
    a minute; later ones reuse it.
    """

    batch_sizes: list[int] | None = field(default=None, metadata={"help": "prompts of a batch; default [8,16,32,64]"})
    calibration_s: float = field(default=60.0, metadata={"help": "about how long calibrating may take, seconds"})
    recalibrate: bool = field(default=False, metadata={"help": "calibrate anew even where a calibration is recorded"})
    offline: bool = field(default=False, metadata={"help": "also advise methods that need the whole dataset first"})
    memory_mb: float | None = field(default=None, metadata={"help": "advise nothing that needs more, in MB of 2**20"})
    rate: float | None = field(default=None, metadata={"help": "prompts a second that arrive; default: all are there"})
    slo_ms: float | None = field(default=None, metadata={"help": "objective for p99 of the time to first token, ms"})
    check: bool = field(default=False, metadata={"help": "measure some batches too, print the prediction's error"})
    check_batches: int = field(default=4, metadata={"help": "batches of each method and size that check measures"})


def check_settings(settings: AdviseSettings) -> None:
    """Check what can be judged without a model, data or device.

    Raises:
        UserError: the first setting that is wrong.
    """
    if settings.batch_sizes is not None and min(settings.batch_sizes, default=0) < 1:
        raise UserError("batch_sizes", f"{settings.batch_sizes}", "give whole numbers of 1 or more: [8,16,32]")
    if not 1 <= settings.calibration_s <= 3600:  # also refuses NaN
        raise UserError("calibration_s", f"{settings.calibration_s:g} s", "give 1 to 3600 seconds")
    if settings.memory_mb is not None and not settings.memory_mb > 0:
        raise UserError("memory_mb", f"{settings.memory_mb:g} MB", "give a number above 0, or leave it out")
    for name, number in (("rate", settings.rate), ("slo_ms", settings.slo_ms)):
        if number is not None and not 0 < number < float("inf"):  # also refuses NaN
            raise UserError(name, f"{number:g}", "give a number above 0")
    if settings.slo_ms is not None and settings.rate is None:
        raise UserError("slo_ms", "needs a rate at which prompts arrive", "add rate= prompts a second")
    for name in ("offline", "memory_mb"):
        if settings.rate is not None and getattr(settings, name):
            raise UserError(name, "is not considered with rate=", "leave it out")
    if settings.check_batches < 1:
        raise UserError("check_batches", f"{settings.check_batches} is too small", "give a whole number of 1 or more")


def arrivals(settings: AdviseSettings, overrides: Sequence[str]) -> list[str]:
    """The overrides that say how prompts arrive, Poisson unless it is said; none where all are there from the start."""
    if settings.rate is None:
        return []
    said = any(override.startswith("arrivals=") for override in overrides)
    slo = [] if settings.slo_ms is None else [f"slo_ms={settings.slo_ms}"]
    return [f"rate={settings.rate}", *slo, *([] if said else ["arrivals=poisson"])]


def read_arguments(argv: Sequence[str]) -> tuple[AdviseSettings, list[str]]:
    """This command's own settings, and the overrides of run's settings that it takes.

    Raises:
        UserError, OmegaConfBaseException: a setting that neither has, or a value that is wrong.
    """
    own = {one.name for one in fields(AdviseSettings)}
    mine = [argument for argument in argv if "=" not in argument or argument.split("=")[0] in own]
    lists = [re.sub(r"^batch_sizes=([^\[]*)$", r"batch_sizes=[\1]", argument) for argument in mine]
    settings = parse_arguments(AdviseSettings, "advise", lists)
    overrides = [argument for argument in argv if argument not in mine]
    for argument in overrides:
        name = argument.lstrip("+~").split("=")[0]
        if name.split(".")[0] not in COMPOSED:
            raise UserError(name, "there is no such setting", f"`{command_line('advise')} --help` lists them all")
    check_settings(settings)
    return settings, overrides
