"""Turns the passes of a comparison into rows: means, intervals and speedups."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..config import Config, as_dict, config_hash, other_settings
from ..prefilling.method import PHASES, Method
from ..prefilling.methods import BASELINE, ORDERED
from ..prefilling.shape import Shape, causal_pairs
from ..records.row import COLUMNS, Row, batches_are_draws, set_speedup
from ..records.store import Record
from . import load
from .machine import device_name, manifest, pick_devices, resolved, software
from .outcome import Outcome, Run
from .process import CpuUse
from .usage import add_cpu, add_memory, add_overhead, add_rates, add_usage, add_validity, least_seconds


def to_records(run: Run, made: dict[str, Any]) -> list[Record]:
    """One record per method of a comparison, failed methods included.

    Args:
        made: the manifest.
    """
    measured = {outcome.method.name: outcome for outcome in run.timed if outcome.passes}
    lengths = sorted(run.plan.prompts.lengths.tolist())
    return [
        Record(
            _row(run, outcome, measured, made.get("git_dirty")),
            made,
            as_dict(run.plan.config),
            [sample for done in outcome.passes for sample in done.samples],
            lengths,
            load.requests(run.plan, outcome.served) if outcome.served is not None else [],
        )
        for outcome in run.outcomes
    ]


def failed_before_planning(config: Config, status: str, reason: str) -> list[Record]:
    """Rows for a configuration whose model could not even be looked at: settings, and no workload to name."""
    devices = pick_devices(config.device, config.device_map)
    c = config = resolved(config, devices[0])
    run = f"{c.dataset.name}-{c.model.name}-{c.metric}-{c.protocol}-b{c.batch_size}-{config_hash(c)[:8]}"
    made, rows = manifest(devices[0]), []
    for method in c.compared_methods:
        row = Row(
            run_id=f"{method}-{run}",
            comparison_id=run,
            status=status,
            status_reason=reason,
            experiment=c.experiment,
            created_at=_now(),
            method=method,
            dataset=c.dataset.name,
            dataset_max_tokens=c.dataset.max_tokens,
            model=c.model.name,
            model_detail=c.model.path or "",
            metric=c.metric,
            protocol=c.protocol,
            batch_size=c.batch_size,
            num_prompts=c.num_prompts,
            seed=c.seed,
            device_name=device_name(*devices),
            dtype=c.dtype,
            loadbit=c.loadbit,
            config_hash=config_hash(c),
            **software(),
        )
        rows.append(Record(row, made, as_dict(c)))
    return rows


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def precise(outcomes: list[Outcome], wanted: float) -> bool:
    """Whether every method's interval is narrower than ± ``wanted``, a share of its value.

    The interval is that of the speedup, or of the mean where full-batching is not among the methods.
    """
    going = [outcome for outcome in outcomes if outcome.passes]
    base = next((outcome for outcome in going if outcome.method.name == BASELINE), None)
    for outcome in going:
        own, draws = outcome.seconds, not outcome.method.needs_dataset
        if base is None or len(going) == 1:
            found = stats.mean_interval(own, draws)
        elif outcome is base:
            continue
        else:
            found = stats.speedup_interval(base.seconds, own, draws)
        if found.precision > wanted:
            return False
    return True


def identity(run: Run, outcome: Outcome) -> Row:
    """A row that says what is measured, by what and on what, and nothing of what came out."""
    plan, method = run.plan, outcome.method
    c, prompts = plan.config, plan.prompts
    return Row(
        run_id=plan.run_id(method),
        comparison_id=plan.comparison_id,
        experiment=c.experiment,
        method=method.name,
        dataset=c.dataset.name,
        dataset_source=prompts.source,
        dataset_detail=prompts.detail,
        dataset_form=prompts.form or None,
        dataset_max_tokens=c.dataset.max_tokens,
        model=c.model.name,
        model_detail=plan.source.detail,
        model_hash=plan.source.identity,
        weights_source=plan.source.weights,
        metric=c.metric,
        protocol=c.protocol,
        numerics=None if c.numerics == "own" else c.numerics,
        sample=None if c.sample == "own" else c.sample,
        packing=c.packing if method.rows == "bin" else None,
        forward=None if method.serves else "transformers" if c.protocol == "paper" else c.forward,
        attention_asked=_attention_asked(c, method),
        max_tokens_per_forward=None if method.serves or c.protocol == "paper" else c.max_tokens_per_forward,
        batch_size=c.batch_size,
        num_prompts=len(prompts.token_ids),
        seed=c.seed,
        device_name=plan.device_name,
        dtype=c.dtype,
        loadbit=c.loadbit,
        faults=" ".join(plan.faults) or None,
        memory_limit_mb=c.memory_limit_mb,
        **(load.asked(c, method) if c.under_load else {}),
        workload_fingerprint=plan.workload_fingerprint,
        other_settings=other_settings(c, COLUMNS),
        config_hash=config_hash(c),
        **software(),
        split=run.split,
    )


def _attention_asked(c: Config, method: Method) -> str | None:
    asked = method.attention or c.attention
    return None if method.serves or asked == "auto" else asked


def _invariance(outcome: Outcome) -> dict[str, Any]:
    found = outcome.invariance
    names = ("tokens_alone", "kv_alone", "tokens_other", "kv_other")
    return {} if found is None else {f"invariant_{name}_pct": found.percent(name) for name in names}


def _row(run: Run, outcome: Outcome, measured: dict[str, Outcome], tree_dirty: bool | None) -> Row:
    plan, method = run.plan, outcome.method
    c, prompts = plan.config, plan.prompts
    compiled = outcome.compiled + outcome.compiled_timed
    row = replace(
        identity(run, outcome),
        status=outcome.status,
        status_reason=outcome.reason,
        created_at=_now(),
        left_out_prompts=prompts.left_out,
        tokenizer=prompts.tokenizer.name if prompts.tokenizer else None,
        attention=outcome.attention,
        passes=outcome.elementwise,
        attention_kernel=outcome.kernel,
        attention_share=outcome.attention_share,
        compile_s=compiled.seconds or None,
        recompiled_timed=outcome.compiled_timed.graphs if compiled.graphs else None,
        **_invariance(outcome),
        ideal_attention_kernel=run.ideal.kernel if run.ideal else None,
        num_batches=len(outcome.batches),
        repeats=len(outcome.passes),
        noise_floor=c.noise_floor,
        useful_tokens=int(prompts.lengths.sum()),
        longest_prompt_tokens=int(prompts.lengths.max()),
        verified_prompts=outcome.verification.prompts,
        verified_max_abs_diff=outcome.verification.max_abs_diff if outcome.verification.prompts else None,
        verified_max_rel_diff=outcome.verification.max_rel_diff if outcome.verification.prompts else None,
        verified_near_ties=outcome.verification.near_ties,
        generated_tokens=outcome.verification.generated_tokens if outcome.verification.continued else None,
        generated_equal_pct=outcome.verification.generated_equal_pct,
    )
    if outcome.passes:
        _add_times(row, outcome, prompts.lengths, Shape.of(plan.source.config).window)
        kept = outcome.passes[-1:] if "last-run-only" in plan.faults else outcome.passes
        if not method.external:
            add_memory(row, kept)
            add_overhead(row, plan, outcome)
        add_usage(row, outcome, kept)
        add_rates(row, run, outcome)
        if outcome.computes_unseen(plan.device.type):
            row.max_utilization_pct = row.mean_utilization_pct = row.utilization_valid = None  # no counter
            row.max_utilization_std_pct = row.mean_utilization_std_pct = None
        # A serving engine's process is another one by design, and a GPU does not wait for other processes on the CPU.
        computes_here = plan.device.type == "cpu" and not method.external
        add_validity(row, outcome, tree_dirty, add_cpu(row, outcome) if computes_here else CpuUse())
        if "divide-twice" in plan.faults:
            row.seconds_per_prompt_mean = (row.seconds_per_prompt_mean or 0.0) / len(outcome.passes)
            row.seconds_per_prompt_std = (row.seconds_per_prompt_std or 0.0) / len(outcome.passes)
        if outcome.served is not None:  # batches formed by themselves, unlike those of any other run
            load.add_waits(row, outcome.served, c.slo_ms, c.seed)
            return row
        if BASELINE in measured:
            base, own = _side_by_side(measured[BASELINE], outcome)
            add_speedup(row, base, own, batches_are_draws(row))
        if ORDERED in measured and method.name != ORDERED:
            found = stats.speedup_interval(*_side_by_side(measured[ORDERED], outcome), same_batches=False)
            row.speedup_over_length_ordered = found.value
            row.speedup_over_length_ordered_ci_low, row.speedup_over_length_ordered_ci_high = found.low, found.high
        if run.ideal and run.ideal.passes:
            found = stats.speedup_interval(*_side_by_side(run.ideal, outcome), batches_are_draws(row))
            row.fraction_of_ideal = found.value
            row.fraction_of_ideal_ci_low, row.fraction_of_ideal_ci_high = found.low, found.high
        if run.rates:
            row.fraction_of_limit = least_seconds(plan, run.rates) / float(outcome.seconds.sum(1).mean())
    return row


def _side_by_side(base: Outcome, own: Outcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of the repeats that both have, [repeats, batches] each."""
    repeats = min(len(base.passes), len(own.passes))
    return base.seconds[:repeats], own.seconds[:repeats]


def _add_times(row: Row, outcome: Outcome, lengths: NDArray[np.int64], window: int | None) -> None:
    seconds = outcome.seconds
    samples = outcome.passes[0].samples
    mean = stats.mean_interval(seconds, batches_are_draws=not outcome.method.needs_dataset)
    row.seconds_per_batch_mean = mean.value
    row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high = mean.low, mean.high
    row.intervals_rest_on_few, row.outlier_samples = mean.few, stats.outliers(seconds)
    row.seconds_per_batch_std = float(seconds.std())
    row.seconds_per_batch_p50, row.seconds_per_batch_p95 = (float(p) for p in np.percentile(seconds, [50, 95]))
    pass_seconds = float(seconds.sum(1).mean())
    row.seconds_per_prompt_mean = pass_seconds / row.num_prompts
    row.seconds_per_prompt_std = float(seconds.sum(1).std()) / row.num_prompts
    assert row.useful_tokens
    row.useful_tokens_per_s = row.useful_tokens / pass_seconds
    row.computed_tokens = sum(sample["computed_tokens"] for sample in samples)
    row.padding_ratio = row.computed_tokens / row.useful_tokens
    if not outcome.method.external:  # the wall time holds the pipe to the other process, too
        wall = sum(done.wall_seconds for done in outcome.passes)
        row.harness_overhead_pct = 100 * (1 - float(seconds.sum()) / wall)
    pairs = [sample["attention_pairs"] for sample in samples]
    if None not in pairs:
        row.attention_pairs_ratio = sum(pairs) / causal_pairs(lengths, window)
    row.rows_per_batch_mean = float(np.mean([sample["rows"] for sample in samples]))
    for phase in PHASES:
        spans = [sample[f"{phase}_s"] for done in outcome.passes for sample in done.samples]
        if any(span is not None for span in spans):  # a batch without it, computed at once for example, spent nothing
            setattr(row, f"{phase}_s_mean", float(np.mean([span or 0.0 for span in spans])))


def add_speedup(row: Row, base: NDArray[np.float64], own: NDArray[np.float64], same_batches: bool) -> None:
    """Fill a row's speedup over full-batching from both methods' seconds, [repeats, batches]."""
    if row.method == BASELINE:
        row.speedup_over_full_batching = 1.0
        return
    set_speedup(row, stats.speedup_interval(base, own, same_batches))
