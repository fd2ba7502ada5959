"""Memory, utilization and validity of a method's passes, filled into its row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..prefilling.shape import Shape
from ..records.row import Row
from . import work
from .limit import limit_seconds
from .outcome import Outcome, Pass, Run
from .plan import Plan
from .process import CpuUse
from .rates import Rates
from .sampler import Usage
from .validity import Evidence, invalid_reasons, notes_of

TERA = 1e12
NO_FLASH = "the library's flash attention could not be loaded: it attended by torch's over its pages"


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known)) if known else None


def add_memory(row: Row, passes: list[Pass]) -> None:
    """Peak memory, the largest of the passes."""
    row.torch_peak_allocated_mb = _largest(done.peak.allocated_mb for done in passes)
    row.torch_peak_reserved_mb = _largest(done.peak.reserved_mb for done in passes)
    row.resident_peak_mb = _largest(done.peak.resident_mb for done in passes)
    row.resident_before_mb = _mean(done.peak.resident_before_mb for done in passes)
    on_gpu = row.torch_peak_allocated_mb is not None
    row.peak_memory_mb = row.torch_peak_allocated_mb if on_gpu else row.resident_peak_mb
    row.peak_memory_source = "torch allocated" if on_gpu else "process resident" if row.resident_peak_mb else None
    if on_gpu:
        row.nvml_process_memory_mb = _largest(done.usage.max_memory_mb for done in passes)


def least_seconds(plan: Plan, rates: Rates) -> float:
    """What a pass over the batches takes at least at this machine's rates."""
    shape, size = Shape.of(plan.source.config), plan.dtype.itemsize
    weight_size = {"none": None, "8": 1.0, "4": 0.5}[plan.config.loadbit]
    lengths = (plan.prompts.lengths[batch] for batch in plan.shuffled)
    return sum(limit_seconds(shape, each, size, rates, weight_size) for each in lengths)


def add_rates(row: Row, run: Run, outcome: Outcome) -> None:
    """Operations per second that were reached, useful ones and all that were computed, and energy of useful tokens."""
    pass_seconds = float(outcome.seconds.sum(1).mean())
    row.useful_tflop_per_s = work.useful_operations(run.plan) / pass_seconds / TERA
    computed = work.computed_operations(run.plan, outcome.assignment)
    row.computed_tflop_per_s = None if computed is None else computed / pass_seconds / TERA
    if run.rates:
        row.matmul_tflop_per_s = rate = run.rates.operations_per_s / TERA
        row.useful_share_of_rate = row.useful_tflop_per_s / rate
        row.computed_share_of_rate = None if computed is None else computed / pass_seconds / run.rates.operations_per_s
    if row.energy_j is not None and row.useful_tokens:
        row.joules_per_1000_useful_tokens = 1000 * row.energy_j / row.useful_tokens


def add_overhead(row: Row, plan: Plan, outcome: Outcome) -> None:
    """Peak memory beside what a prefill must hold at its end: weights, the KV of every prompt's tokens, logits.

    Pads of a cache are no such need, though a GPU has to hold them; nor is the second copy of the weights that a CPU's
    products are faster with, which counts as the process's, like its libraries.
    """
    if row.peak_memory_mb is None or plan.config.loadbit != "none" or outcome.method.serves:
        return
    shape, size = Shape.of(plan.source.config), plan.dtype.itemsize
    weights = shape.bytes(0, 0, 0, size) / 2**20
    if not shape.tied:
        weights += size * shape.vocabulary / 2**20
    held = max(
        shape.bytes(1, int(plan.prompts.lengths[batch].sum()), len(batch), size) - shape.bytes(0, 0, 0, size)
        for batch in outcome.batches
    )
    row.must_hold_mb = weights + held / 2**20
    if row.torch_peak_allocated_mb is None:
        row.resident_rest_mb = (row.resident_before_mb or 0.0) - weights
    row.memory_overhead_pct = 100 * ((row.peak_memory_mb - (row.resident_rest_mb or 0.0)) / row.must_hold_mb - 1)


def add_usage(row: Row, outcome: Outcome, kept: list[Pass]) -> None:
    """Utilization from the loop where there was one; everything else from the passes, and the loop beside them."""
    passes, loop = [done.usage for done in kept], outcome.loop
    believed = [loop.usage] if loop else passes
    row.utilization_source = passes[0].source
    row.utilization_windows = min(usage.windows for usage in believed)
    row.utilization_valid = all(usage.valid for usage in believed)
    if row.utilization_valid:
        row.max_utilization_pct = _mean(usage.max_utilization_pct for usage in believed)
        row.mean_utilization_pct = _mean(usage.mean_utilization_pct for usage in believed)
        row.mean_memory_utilization_pct = _mean(usage.mean_memory_utilization_pct for usage in believed)
    if row.utilization_valid and not loop:  # a single loop has no spread over repeats
        row.max_utilization_std_pct = _spread(usage.max_utilization_pct for usage in passes)
        row.mean_utilization_std_pct = _spread(usage.mean_utilization_pct for usage in passes)
    row.utilization_loop_s = loop.seconds if loop else None
    row.energy_j = _energy_of_a_pass(passes, loop.usage if loop else None)
    row.sampler_readings = sum(usage.readings for usage in passes)
    spans = _spans(outcome)
    # Recent GPUs give a mean over the last second, which within a short pass is of what ran before it.
    row.power_mean_w = _mean(usage.mean_power_w for usage in believed)
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
    if row.energy_j is not None:
        gaps.pop("energy_j", None)  # of passes too short for it, where the loop told
    row.telemetry_gaps = "; ".join(f"{name}: {reason}" for name, reason in gaps.items()) or None


def _energy_of_a_pass(passes: list[Usage], loop: Usage | None) -> float | None:
    """Joules of a pass by the GPU's counter; of passes too short for it, by the loop's power over as many seconds."""
    if loop is not None and loop.energy_j is not None and any(usage.energy_j is None for usage in passes):
        return loop.energy_j / loop.seconds * float(np.mean([usage.seconds for usage in passes]))
    return _mean(usage.energy_j for usage in passes)


def _spans(outcome: Outcome) -> list[Usage]:
    return [*(done.usage for done in outcome.passes), *([outcome.loop.usage] if outcome.loop else [])]


def _throttled(spans: list[Usage]) -> list[str]:
    return sorted({reason for usage in spans for reason in usage.throttle_reasons or ()})


def add_cpu(row: Row, outcome: Outcome) -> CpuUse:
    """What others took of the cores in the timed passes, for work that is done on them by this process."""
    cpu = sum((done.cpu for done in outcome.passes), CpuUse())
    for name, share in (("other", cpu.other), ("stolen", cpu.stolen), ("throttled", cpu.throttled)):
        setattr(row, f"{name}_cpu_pct", None if share is None else 100 * share)
    row.cpu_clock_mean_mhz = _mean(done.usage.mean_cpu_clock_mhz for done in outcome.passes)
    return cpu


def add_validity(row: Row, outcome: Outcome, tree_dirty: bool | None, cpu: CpuUse) -> None:
    """The verdict, with its reasons, and what else a reader should know. Clocks are those of the timed passes alone.

    Args:
        cpu: what others took of the cores, nothing where the work was done elsewhere.
    """
    passes = [done.usage for done in outcome.passes]
    clocks = [usage.mean_cpu_clock_mhz for usage in passes if usage.mean_cpu_clock_mhz is not None]
    low = [usage.min_sm_clock_mhz for usage in passes if usage.min_sm_clock_mhz is not None]
    high = [usage.max_sm_clock_mhz for usage in passes if usage.max_sm_clock_mhz is not None]
    rising = [usage.rising_sm_clock_mhz for usage in passes if usage.rising_sm_clock_mhz is not None]
    seen = Evidence(
        pass_seconds=outcome.seconds.sum(1).tolist(),
        utilization_valid=row.utilization_valid is not False,  # None: no counter could have seen it
        sm_clocks_mhz=(min(low), max(high)) if low and high else None,
        rising_clock_mhz=min(rising, default=None),
        throttle_reasons=_throttled(_spans(outcome)),
        other_processes=row.other_gpu_processes,
        tree_dirty=tree_dirty,
        faults=row.faults,
        cpu=cpu,
        cpu_clocks_mhz=(min(clocks), max(clocks)) if clocks else None,
        swapped_mb=_largest(done.peak.swapped_mb for done in outcome.passes),
    )
    reasons = invalid_reasons(seen)
    row.valid, row.invalid_reasons = not reasons, "; ".join(reasons) or None
    notes = notes_of(seen)
    ours, ideals = row.attention_kernel, row.ideal_attention_kernel
    if ours and ideals and ours != ideals:
        notes.append(f"its attention ran on {ours}, the ideal's on {ideals}")
    half_on_gpu = row.torch_peak_allocated_mb is not None and row.dtype != "float32"
    if row.attention == "paged|sdpa" and half_on_gpu:
        notes.append(NO_FLASH)
    row.notes = "; ".join(notes) or None
