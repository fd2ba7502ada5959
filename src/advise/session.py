"""A session of advice: calibrate where needed, predict, print the table, and check the prediction where asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cli import UserError
from ..config import Config
from ..measure import gpus
from ..measure.machine import device_name, pick_device
from ..measure.plan import prepare
from ..measure.process import CpuTimes, CpuUse
from ..prefilling.loading import load_model
from ..prefilling.shape import Shape
from ..report.cells import Column, as_markdown, fixed, make_table, thousands, times
from . import calibrate, choosing, under_load
from .choosing import BASELINE, Checked, Choice, with_spread
from .cost import fit
from .settings import AdviseSettings

BATCH_SIZES = (8, 16, 32, 64)


def advise(config: Config, asked: AdviseSettings) -> None:
    """Print what each method takes at each batch size, and which to use."""
    gpus.open_here(pick_device(config.device))
    plan = prepare(config)
    lengths, c, shape = plan.prompts.lengths, plan.config, Shape.of(plan.source.config)
    usable = len(lengths)
    batch_sizes = asked.batch_sizes or [size for size in BATCH_SIZES if size <= usable] or [usable]
    if max(batch_sizes) > usable:
        problem = f"{max(batch_sizes)} is larger than the data ({usable} usable prompts)"
        raise UserError("batch_sizes", problem, f"give at most {usable}")
    key = calibrate.key_of(plan, shape)
    measured = None if asked.recalibrate else calibrate.load(plan.results_dir, key, asked.calibration_s)
    bench = None
    if measured is None or asked.check:
        bench = calibrate.Bench(load_model(plan.source, plan.device, plan.dtype, c.loadbit, c.seed), plan)
    if measured is None:
        assert bench is not None
        measured, quiet = calibrate.calibrate(bench, plan, shape, asked.calibration_s)
        if quiet:
            path = calibrate.save(plan.results_dir, key, asked.calibration_s, measured)
            print(f"calibration: {path}", flush=True)
    costs = fit(calibrate.samples_of(measured, plan, shape))
    if plan.arrivals_s is not None:
        _advise_under_load(under_load.Predictor(plan, shape, costs), sorted(set(batch_sizes)), bench, asked.check)
        return
    found = choosing.choices(plan, shape, costs, sorted(set(batch_sizes)))
    prompts = f"{usable:,} prompts of {lengths.mean():.0f} tokens, {lengths.max():,} at most"
    print(
        f"\nPredicted for {c.dataset.name} ({prompts}), {c.model.name}, {c.dtype}, {device_name(plan.device)}\n\n"
        f"{predictions(found, asked.memory_mb)}\n\n"
        "* needs the whole dataset before its first batch: advised with offline=true only\n"
        "s / batch is also the wait for first tokens; MB are a lower bound; intervals: 95 %, from batches left out of "
        f"the fit\n\n{choosing.advise(found, asked.offline, asked.memory_mb)[1]}",
        flush=True,
    )
    if asked.check and bench is not None:
        print(f"\nChecked on up to {asked.check_batches} batches of each:\n", flush=True)
        before = CpuTimes.now()
        checked = choosing.check(plan, bench, found, asked.check_batches)
        share = CpuUse.since(before).other or 0.0
        print(f"{comparison(checked)}\nOther processes used {share:.0%} of the processor meanwhile.", flush=True)


def _advise_under_load(
    predictor: under_load.Predictor, batch_sizes: list[int], bench: calibrate.Bench | None, checks: bool
) -> None:
    c = predictor.plan.config
    found = under_load.choices(predictor, batch_sizes)
    prompts = f"{len(predictor.lengths):,} prompts of {predictor.lengths.mean():.0f} tokens"
    print(
        f"\nPredicted for {c.dataset.name} ({prompts}), {c.arrivals}, {c.rate:g} a second, {c.model.name}, {c.dtype}, "
        f"{device_name(predictor.plan.device)}\n\n{under_load.table(found, c.slo_ms)}\n\n"
        f"each with its best batch size of {', '.join(map(str, batch_sizes))}; intervals: 95 %, from batches left out "
        "of the fit\n\n"
        f"{under_load.advice(found, c)[1]}",
        flush=True,
    )
    if checks and bench is not None:
        print("\nChecked with batches that are really computed, in virtual time:\n", flush=True)
        print(under_load.check(predictor, bench, found), flush=True)


def predictions(found: Sequence[Choice], memory_mb: float | None) -> str:
    """A Markdown table of every choice."""
    columns = [
        Column("Method"), Column("Batch size"), Column("s / batch", _four), Column("ms / prompt", _four),
        Column("Useful tokens / s", thousands), Column("Speedup over full-batching", times), Column("MB", thousands),
    ]  # fmt: skip
    body = [
        {"Method": one.method.name + (" *" if one.method.needs_dataset else ""), "Batch size": one.batch_size,
         "s / batch": float(one.seconds.mean()), "ms / prompt": 1000 / one.prompts_per_s,
         "Useful tokens / s": one.tokens_per_s,
         "Speedup over full-batching": 1.0 if one.method.name == BASELINE else with_spread(one.speedup, one.spread),
         "MB": f"{thousands(one.memory_mb)} (too much)" if memory_mb is not None and one.memory_mb > memory_mb
               else one.memory_mb}
        for one in found
    ]  # fmt: skip
    return as_markdown(make_table(columns, body, ()))


def _four(value: float) -> str:
    return f"{value:.4g}"


def comparison(checked: Sequence[Checked]) -> str:
    """A Markdown table of predicted and measured times and speedups, and a line on how large the errors are."""

    def percent(error: float) -> str:
        return f"{100 * error:+.0f} %"

    def sizes(errors: list[float]) -> str:
        return f"median {100 * np.median(np.abs(errors)):.0f} %, largest {100 * np.max(np.abs(errors)):.0f} %"

    columns = [
        Column("Method"), Column("Batch size"), Column("Predicted s", fixed(3)), Column("Measured s", fixed(3)),
        Column("Error", percent), Column("Predicted speedup", times), Column("Measured speedup", times),
        Column("Error of the speedup", percent),
    ]  # fmt: skip
    body = [
        {"Method": one.choice.method.name, "Batch size": one.choice.batch_size, "Predicted s": one.predicted_s,
         "Measured s": one.measured_s, "Error": one.error,
         "Predicted speedup": one.predicted_speedup and with_spread(one.predicted_speedup, one.choice.spread),
         "Measured speedup": one.measured_speedup, "Error of the speedup": one.speedup_error}
        for one in checked
    ]  # fmt: skip
    of_speedups = [one.speedup_error for one in checked if one.speedup_error is not None]
    line = f"Errors of times: {sizes([one.error for one in checked])}; of speedups: {sizes(of_speedups)}."
    return f"{as_markdown(make_table(columns, body, ()))}\n\n{line}"
