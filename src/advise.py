"""python -m src.advise dataset=… model=…: which method and batch size to use here, from a minute's calibration."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from src.cli import UserError, guarded, parse_arguments

if TYPE_CHECKING:
    from src.measure.advice import Checked, Choice

# Settings of src.run that say what is served, by what and on what; the others say how a run is measured.
COMPOSED = (
    "dataset", "model", "device", "dtype", "loadbit", "forward", "num_prompts", "packing", "seed", "results_dir",
)  # fmt: skip
BATCH_SIZES = (8, 16, 32, 64)


@dataclass
class AdviseSettings:
    """Advise which method and batch size to use for a dataset and model on this machine, from predicted times.

    Also takes these settings of src.run: dataset, dataset.…, model, model.…, device, dtype, loadbit, forward,
    num_prompts, packing, seed, results_dir. The first call calibrates for about a minute; later ones reuse it.
    """

    batch_sizes: list[int] | None = field(default=None, metadata={"help": "prompts of a batch; default [8,16,32,64]"})
    calibration_s: float = field(default=60.0, metadata={"help": "about how long calibrating may take, seconds"})
    recalibrate: bool = field(default=False, metadata={"help": "calibrate anew even where a calibration is recorded"})
    offline: bool = field(default=False, metadata={"help": "also advise methods that need the whole dataset first"})
    memory_mb: float | None = field(default=None, metadata={"help": "advise nothing that needs more, in MB of 2**20"})
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
    if settings.check_batches < 1:
        raise UserError("check_batches", f"{settings.check_batches} is too small", "give a whole number of 1 or more")


def read_arguments(argv: Sequence[str]) -> tuple[AdviseSettings, list[str]]:
    """This command's own settings, and the overrides of src.run's that it takes.

    Raises:
        UserError, OmegaConfBaseException: a setting that neither has, or a value that is wrong.
    """
    own = {one.name for one in fields(AdviseSettings)}
    mine = [argument for argument in argv if "=" not in argument or argument.split("=")[0] in own]
    lists = [re.sub(r"^batch_sizes=([^\[]*)$", r"batch_sizes=[\1]", argument) for argument in mine]
    settings = parse_arguments(AdviseSettings, "src.advise", lists)
    overrides = [argument for argument in argv if argument not in mine]
    for argument in overrides:
        name = argument.lstrip("+~").split("=")[0]
        if name.split(".")[0] not in COMPOSED:
            raise UserError(name, "there is no such setting", "`python -m src.advise --help` lists them all")
    check_settings(settings)
    return settings, overrides


def predictions(found: Sequence[Choice], memory_mb: float | None) -> str:
    """A Markdown table of every choice."""
    from src.measure.advice import BASELINE, interval
    from src.report.tables import markdown

    head = ["Method", "Batch size", "s / batch", "ms / prompt", "Useful tokens / s", "Speedup over full-batching", "MB"]
    body = [
        [
            one.method.name + (" *" if one.method.needs_dataset else ""),
            str(one.batch_size),
            f"{one.seconds.mean():.4g}",
            f"{1000 / one.prompts_per_s:.4g}",
            f"{one.tokens_per_s:,.0f}",
            "1.00x" if one.method.name == BASELINE else interval(one.speedup, one.spread),
            f"{one.memory_mb:,.0f}" + (" (too much)" if memory_mb is not None and one.memory_mb > memory_mb else ""),
        ]
        for one in found
    ]
    return markdown(head, body)


def comparison(checked: Sequence[Checked]) -> str:
    """A Markdown table of predicted and measured times and speedups, and a line on how large the errors are."""
    import numpy as np

    from src.measure.advice import interval
    from src.report.tables import markdown

    def percent(error: float | None) -> str:
        return "" if error is None else f"{100 * error:+.0f} %"

    def sizes(errors: list[float]) -> str:
        return f"median {100 * np.median(np.abs(errors)):.0f} %, largest {100 * np.max(np.abs(errors)):.0f} %"

    head = ["Method", "Batch size", "Predicted s", "Measured s", "Error", "Predicted speedup", "Measured", "Error"]
    body = [
        [
            one.choice.method.name,
            str(one.choice.batch_size),
            f"{one.predicted_s:.3f}",
            f"{one.measured_s:.3f}",
            percent(one.error),
            "" if one.predicted_speedup is None else interval(one.predicted_speedup, one.choice.spread),
            "" if one.measured_speedup is None else f"{one.measured_speedup:.2f}x",
            percent(one.speedup_error),
        ]
        for one in checked
    ]
    of_speedups = [one.speedup_error for one in checked if one.speedup_error is not None]
    line = f"Errors of times: {sizes([one.error for one in checked])}; of speedups: {sizes(of_speedups)}."
    return f"{markdown(head, body)}\n\n{line}"


def main() -> None:
    """Read the settings, calibrate where needed, predict, print the table and the advice."""
    settings, overrides = read_arguments(sys.argv[1:])
    from src.config import compose

    config, _ = compose([*overrides, "methods=[full-batching]", "batch_size=1", "protocol=modern", "metric=ttft"])
    from src.measure import advice, calibrate, gpus  # after bad settings: torch takes seconds to import
    from src.measure.cost import fit
    from src.measure.estimate import Shape
    from src.measure.machine import device_name, pick_device
    from src.measure.plan import prepare
    from src.measure.process import CpuTimes, CpuUse
    from src.prefill.models import load_model

    gpus.open_here(pick_device(config.device))
    plan = prepare(config)
    lengths, c, shape = plan.prompts.lengths, plan.config, Shape.of(plan.source.config)
    usable = len(lengths)
    batch_sizes = settings.batch_sizes or [size for size in BATCH_SIZES if size <= usable] or [usable]
    if max(batch_sizes) > usable:
        problem = f"{max(batch_sizes)} is larger than the data ({usable} usable prompts)"
        raise UserError("batch_sizes", problem, f"give at most {usable}")
    key = calibrate.key_of(plan, shape)
    measured = None if settings.recalibrate else calibrate.load(plan.results_dir, key, settings.calibration_s)
    bench = None
    if measured is None or settings.check:
        bench = calibrate.Bench(load_model(plan.source, plan.device, plan.dtype, c.loadbit, c.seed), plan)
    if measured is None:
        assert bench is not None
        measured, quiet = calibrate.calibrate(bench, plan, shape, settings.calibration_s)
        if quiet:
            path = calibrate.save(plan.results_dir, key, settings.calibration_s, measured)
            print(f"calibration: {path}", flush=True)
    costs = fit(calibrate.samples_of(measured, plan, shape))
    found = advice.choices(plan, shape, costs, sorted(set(batch_sizes)))
    prompts = f"{usable:,} prompts of {lengths.mean():.0f} tokens, {lengths.max():,} at most"
    print(
        f"\nPredicted for {c.dataset.name} ({prompts}), {c.model.name}, {c.dtype}, {device_name(plan.device)}\n\n"
        f"{predictions(found, settings.memory_mb)}\n\n"
        "* needs the whole dataset before its first batch: advised with offline=true only\n"
        "s / batch is also the wait for first tokens; MB are a lower bound; intervals: 95 %, from batches left out of "
        f"the fit\n\n{advice.advise(found, settings.offline, settings.memory_mb)[1]}",
        flush=True,
    )
    if settings.check and bench is not None:
        print(f"\nChecked on up to {settings.check_batches} batches of each:\n", flush=True)
        before = CpuTimes.now()
        checked = advice.check(plan, bench, found, settings.check_batches)
        share = CpuUse.since(before).other or 0.0
        print(f"{comparison(checked)}\nOther processes used {share:.0%} of the processor meanwhile.", flush=True)


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
