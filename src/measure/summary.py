"""Passes of a comparison into rows: means, intervals and speedups."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src import stats
from src.config import Config, as_dict, config_hash
from src.measure.estimate import Shape
from src.measure.limit import Rates, limit_seconds
from src.measure.machine import device_name, manifest, pick_device
from src.measure.plan import Outcome, Pass, Plan
from src.measure.records import Record
from src.measure.row import Row
from src.measure.sampler import Usage
from src.measure.validity import Evidence, invalid_reasons
from src.prefill.methods import PHASES

BASELINE, ORDERED = "full-batching", "length-ordered"


def to_records(plan: Plan, made: dict[str, Any], config: dict[str, Any]) -> list[Record]:
    """One record per method of a comparison, whatever became of it."""
    measured = {outcome.method.name: outcome for outcome in plan.timed if outcome.passes}
    lengths = sorted(plan.prompts.lengths.tolist())
    return [
        Record(
            _row(plan, outcome, measured, made.get("git_dirty")),
            made,
            config,
            [sample for done in outcome.passes for sample in done.samples],
            lengths,
        )
        for outcome in plan.outcomes
    ]


def failed_before_planning(config: Config, status: str, reason: str) -> list[Record]:
    """Rows for a configuration whose model could not even be looked at: settings, and no workload to name."""
    c, device = config, pick_device(config.device)
    run = f"{c.dataset.name}-{c.model.name}-{c.metric}-{c.protocol}-b{c.batch_size}-{config_hash(c)[:8]}"
    made, rows = manifest(device), []
    for method in c.compared_methods:
        row = Row(
            run_id=f"{method}-{run}",
            comparison_id=run,
            status=status,
            status_reason=reason,
            created_at=_now(),
            method=method,
            dataset=c.dataset.name,
            model=c.model.name,
            model_detail=c.model.path or "",
            metric=c.metric,
            protocol=c.protocol,
            batch_size=c.batch_size,
            num_prompts=c.num_prompts,
            seed=c.seed,
            device_name=device_name(device),
            loadbit=c.loadbit,
            config_hash=config_hash(c),
        )
        rows.append(Record(row, made, as_dict(c)))
    return rows


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def seconds_of(passes: list[Pass]) -> NDArray[np.float64]:
    """Seconds of each sample, [repeats, batches]."""
    return np.array([[sample["seconds"] for sample in done.samples] for done in passes])


def precise(outcomes: list[Outcome], wanted: float) -> bool:
    """Whether every method's interval is narrower than ± ``wanted``, a share of its value.

    The interval is that of the speedup, or of the mean where full-batching is not among the methods.
    """
    going = [outcome for outcome in outcomes if outcome.passes]
    base = next((outcome for outcome in going if outcome.method.name == BASELINE), None)
    for outcome in going:
        own, draws = seconds_of(outcome.passes), not outcome.method.needs_dataset
        if base is None or len(going) == 1:
            found = stats.mean_interval(own, draws)
        elif outcome is base:
            continue
        else:
            found = stats.speedup_interval(seconds_of(base.passes), own, draws)
        if found.precision > wanted:
            return False
    return True


def _row(plan: Plan, outcome: Outcome, measured: dict[str, Outcome], tree_dirty: bool | None) -> Row:
    c, prompts, method = plan.config, plan.prompts, outcome.method
    row = Row(
        run_id=plan.run_id(method),
        comparison_id=plan.comparison_id,
        status=outcome.status,
        status_reason=outcome.reason,
        created_at=_now(),
        method=method.name,
        dataset=c.dataset.name,
        dataset_source=prompts.source,
        dataset_detail=prompts.detail,
        tokenizer=prompts.tokenizer.name if prompts.tokenizer else None,
        model=c.model.name,
        model_detail=plan.source.detail,
        weights_source=plan.source.weights,
        metric=c.metric,
        protocol=c.protocol,
        packing=c.packing if method.rows == "bin" else None,
        forward=None if method.serves else "transformers" if c.protocol == "paper" else c.forward,
        attention=outcome.attention,
        batch_size=c.batch_size,
        num_prompts=len(prompts.token_ids),
        num_batches=len(outcome.batches),
        repeats=len(outcome.passes),
        seed=c.seed,
        device_name=device_name(plan.device),
        dtype=c.dtype,
        loadbit=c.loadbit,
        quirks=" ".join(plan.quirks) or None,
        noise_floor=c.noise_floor,
        useful_tokens=int(prompts.lengths.sum()),
        longest_prompt_tokens=int(prompts.lengths.max()),
        verified_prompts=outcome.verification.prompts,
        verified_max_abs_diff=outcome.verification.max_abs_diff if outcome.verification.prompts else None,
        verified_max_rel_diff=outcome.verification.max_rel_diff if outcome.verification.prompts else None,
        verified_near_ties=outcome.verification.near_ties,
        generated_tokens=outcome.verification.generated_tokens if outcome.verification.continued else None,
        generated_equal_pct=outcome.verification.generated_equal_pct,
        workload_fingerprint=plan.workload_fingerprint,
        config_hash=config_hash(c),
    )
    if outcome.passes:
        _add_times(row, outcome)
        kept = outcome.passes[-1:] if "last-run-only" in plan.quirks else outcome.passes
        if method.name != "vllm":  # another process, which these counters do not see
            _add_memory(row, kept)
            _add_overhead(row, plan, outcome)
        _add_usage(row, outcome, kept)
        if method.name == "vllm":
            row.max_utilization_pct = row.mean_utilization_pct = None
        _add_validity(row, outcome, tree_dirty)
        if "divide-twice" in plan.quirks:
            row.seconds_per_prompt_mean = (row.seconds_per_prompt_mean or 0.0) / len(outcome.passes)
        if BASELINE in measured:
            base, own = _side_by_side(measured[BASELINE], outcome)
            add_speedup(row, base, own, not method.needs_dataset and "own-shuffle" not in plan.quirks)
        if ORDERED in measured and method.name != ORDERED:
            found = stats.speedup_interval(*_side_by_side(measured[ORDERED], outcome), same_batches=False)
            row.speedup_over_length_ordered = found.value
            row.speedup_over_length_ordered_ci_low, row.speedup_over_length_ordered_ci_high = found.low, found.high
        if plan.ideal and plan.ideal.passes:
            found = stats.speedup_interval(*_side_by_side(plan.ideal, outcome), not method.needs_dataset)
            row.fraction_of_ideal = found.value
            row.fraction_of_ideal_ci_low, row.fraction_of_ideal_ci_high = found.low, found.high
        if plan.rates:
            row.fraction_of_limit = _least_seconds(plan, plan.rates) / float(seconds_of(outcome.passes).sum(1).mean())
    return row


def _side_by_side(base: Outcome, own: Outcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of the repeats that both have, [repeats, batches] each."""
    repeats = min(len(base.passes), len(own.passes))
    return seconds_of(base.passes)[:repeats], seconds_of(own.passes)[:repeats]


def _add_times(row: Row, outcome: Outcome) -> None:
    seconds = seconds_of(outcome.passes)
    samples = outcome.passes[0].samples
    mean = stats.mean_interval(seconds, batches_are_draws=not outcome.method.needs_dataset)
    row.seconds_per_batch_mean = mean.value
    row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high = mean.low, mean.high
    row.intervals_rest_on_few, row.outlier_samples = mean.few, stats.outliers(seconds)
    row.seconds_per_batch_std = float(seconds.std())
    row.seconds_per_batch_p50, row.seconds_per_batch_p95 = (float(p) for p in np.percentile(seconds, [50, 95]))
    pass_seconds = float(seconds.sum(1).mean())
    row.seconds_per_prompt_mean = pass_seconds / row.num_prompts
    assert row.useful_tokens
    row.useful_tokens_per_s = row.useful_tokens / pass_seconds
    row.computed_tokens = sum(sample["computed_tokens"] for sample in samples)
    row.padding_ratio = row.computed_tokens / row.useful_tokens
    if outcome.method.name != "vllm":  # between its clock and ours lies the pipe
        wall = sum(done.wall_seconds for done in outcome.passes)
        row.harness_overhead_pct = 100 * (1 - float(seconds.sum()) / wall)
    row.rows_per_batch_mean = float(np.mean([sample["rows"] for sample in samples]))
    for phase in PHASES:
        spans = [sample[f"{phase}_s"] for done in outcome.passes for sample in done.samples]
        if spans[0] is not None:
            setattr(row, f"{phase}_s_mean", float(np.mean(spans)))


def add_speedup(row: Row, base: NDArray[np.float64], own: NDArray[np.float64], same_batches: bool) -> None:
    """Fill a row's speedup over full-batching from both methods' seconds, [repeats, batches]."""
    if row.method == BASELINE:
        row.speedup_over_full_batching = 1.0
        return
    speedup = stats.speedup_interval(base, own, same_batches)
    row.speedup_over_full_batching = speedup.value
    row.speedup_ci_low, row.speedup_ci_high = speedup.low, speedup.high
    row.speedup_verdict = speedup.verdict(row.noise_floor or 0.0)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known)) if known else None


def _add_memory(row: Row, passes: list[Pass]) -> None:
    row.torch_peak_allocated_mb = _largest(done.peak.allocated_mb for done in passes)
    row.torch_peak_reserved_mb = _largest(done.peak.reserved_mb for done in passes)
    row.resident_peak_mb = _largest(done.peak.resident_mb for done in passes)
    row.resident_before_mb = _mean(done.peak.resident_before_mb for done in passes)
    on_gpu = row.torch_peak_allocated_mb is not None
    row.peak_memory_mb = row.torch_peak_allocated_mb if on_gpu else row.resident_peak_mb
    row.peak_memory_source = "torch allocated" if on_gpu else "process resident" if row.resident_peak_mb else None
    if on_gpu:
        row.nvml_process_memory_mb = _largest(done.usage.max_memory_mb for done in passes)


def _least_seconds(plan: Plan, rates: Rates) -> float:
    """What a pass over the batches takes at least at this machine's rates."""
    shape, size = Shape.of(plan.source.config), torch.empty((), dtype=plan.dtype).element_size()
    weight_size = {"none": None, "8": 1.0, "4": 0.5}[plan.config.loadbit]
    lengths = (plan.prompts.lengths[batch] for batch in plan.shuffled)
    return sum(limit_seconds(shape, each, size, rates, weight_size) for each in lengths)


def _add_overhead(row: Row, plan: Plan, outcome: Outcome) -> None:
    """Peak memory beside what a prefill must hold at its end: weights, every prompt's KV as delivered, logits."""
    if row.peak_memory_mb is None or plan.config.loadbit != "none" or outcome.method.serves:
        return
    shape, size = Shape.of(plan.source.config), torch.empty((), dtype=plan.dtype).element_size()
    weights = shape.bytes(0, 0, 0, size) / 2**20
    if not shape.tied:
        weights += size * shape.vocabulary / 2**20
    batches = zip(outcome.shapes, outcome.batches, strict=True)
    held = max(
        shape.bytes(len(batch), int(plan.prompts.lengths[batch].max()), plan.logit_positions(*rows_width, batch), size)
        - shape.bytes(0, 0, 0, size)
        for rows_width, batch in batches
    )
    row.must_hold_mb = weights + held / 2**20
    rest = 0.0 if row.torch_peak_allocated_mb is not None else (row.resident_before_mb or 0.0) - weights
    row.memory_overhead_pct = 100 * ((row.peak_memory_mb - rest) / row.must_hold_mb - 1)


def _add_usage(row: Row, outcome: Outcome, kept: list[Pass]) -> None:
    """Utilization from the loop where there was one; everything else from the passes, and the loop beside them."""
    passes, loop = [done.usage for done in kept], outcome.loop
    believed = [loop.usage] if loop else passes
    row.max_utilization_pct = _mean(usage.max_utilization_pct for usage in believed)
    row.mean_utilization_pct = _mean(usage.mean_utilization_pct for usage in believed)
    row.mean_memory_utilization_pct = _mean(usage.mean_memory_utilization_pct for usage in believed)
    if not loop:  # a single loop has no spread over repeats
        row.max_utilization_std_pct = _spread(usage.max_utilization_pct for usage in passes)
        row.mean_utilization_std_pct = _spread(usage.mean_utilization_pct for usage in passes)
    row.utilization_source = passes[0].source
    row.utilization_windows = min(usage.windows for usage in believed)
    row.utilization_valid = all(usage.valid for usage in believed)
    row.utilization_loop_s = loop.seconds if loop else None
    row.energy_j = _mean(usage.energy_j for usage in passes)
    row.sampler_readings = sum(usage.readings for usage in passes)
    spans = _spans(outcome)
    row.power_mean_w = _mean(usage.mean_power_w for usage in spans)
    row.sm_clock_mean_mhz = _mean(usage.mean_sm_clock_mhz for usage in spans)
    row.memory_clock_mean_mhz = _mean(usage.mean_memory_clock_mhz for usage in spans)
    row.temperature_max_c = _largest(usage.max_temperature_c for usage in spans)
    row.device_memory_used_mb = _largest(usage.max_device_memory_mb for usage in spans)
    others = _largest(usage.other_processes for usage in spans)
    row.other_gpu_processes = None if others is None else int(others)
    row.other_gpu_processes_mb = _largest(usage.other_processes_mb for usage in spans)
    if any(usage.throttle_reasons is not None for usage in spans):
        row.throttle_reasons = ", ".join(_throttled(spans)) or "none"
    gaps: dict[str, str] = {}
    for usage in spans:
        for name, reason in usage.gaps.items():
            gaps.setdefault(name, reason)
    row.telemetry_gaps = "; ".join(f"{name}: {reason}" for name, reason in gaps.items()) or None


def _spans(outcome: Outcome) -> list[Usage]:
    return [*(done.usage for done in outcome.passes), *([outcome.loop.usage] if outcome.loop else [])]


def _throttled(spans: list[Usage]) -> list[str]:
    return sorted({reason for usage in spans for reason in usage.throttle_reasons or ()})


def _add_validity(row: Row, outcome: Outcome, tree_dirty: bool | None) -> None:
    spans = _spans(outcome)
    low = [usage.min_sm_clock_mhz for usage in spans if usage.min_sm_clock_mhz is not None]
    high = [usage.max_sm_clock_mhz for usage in spans if usage.max_sm_clock_mhz is not None]
    reasons = invalid_reasons(
        Evidence(
            pass_seconds=seconds_of(outcome.passes).sum(1).tolist(),
            utilization_valid=bool(row.utilization_valid),
            sm_clocks_mhz=(min(low), max(high)) if low and high else None,
            throttle_reasons=_throttled(spans),
            other_processes=row.other_gpu_processes,
            tree_dirty=tree_dirty,
            quirks=row.quirks,
            swapped_mb=_largest(done.peak.swapped_mb for done in outcome.passes),
        )
    )
    row.valid, row.invalid_reasons = not reasons, "; ".join(reasons) or None
