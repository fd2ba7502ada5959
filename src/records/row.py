"""The row: what is known of one method's measurement, flat, each column with its kind, unit and meaning.

This file is the one definition of what makes two measurements the same. Grouping, comparing, resuming and the schema
ask it, and so does everything that prints a column.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import Any

from ..config import CHOICES
from ..interval import FEW, Interval
from ..prefilling.methods import method_of

ON_PURPOSE = "measured with faults on purpose"  # begins the reason for which such a measurement is INVALID
STATUSES = ("ok", "oom", "timeout", "error", "gated", "incorrect", "skipped")
# What columns may hold, of settings what these may be.
VALUES = {"status": STATUSES} | {name: tuple(sorted(CHOICES[name])) for name in ("metric", "protocol")}

# The kinds of columns. The first three identify a measurement; two rows that agree in them are the same measurement.
WORK = "work: what was asked of every method; only equal work is compared, on one machine or on several"
HOW = "way: how a method did the work; tells methods on the same work apart"
MACHINE = "machine: what computed it; equal within a table, and what differs where machines or versions are compared"
SETTING = "setting: how often and how carefully it was measured"
FIGURE = "figure: what was measured or computed from that"
PROVENANCE = "provenance: names, where things come from, and whether the record is valid"


def _column(kind: str, doc: str, default: Any = None, unit: str = "") -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc, "unit": unit})


_work, _way, _machine, _setting, _figure, _origin = (
    functools.partial(_column, kind) for kind in (WORK, HOW, MACHINE, SETTING, FIGURE, PROVENANCE)
)


@dataclass
class Row:
    """One method's measurement; the columns of ``summary.csv``. None where a value does not exist."""

    run_id: str = _origin("names the record's folder; the same for the same settings, workload, machine and code", "")
    comparison_id: str = _origin("the same for methods measured side by side in one process", "")
    experiment: str | None = _origin(
        "the experiment of configs/experiment/ that it was measured for; none: a run by itself"
    )
    status: str = _origin(f"one of {', '.join(STATUSES)}", "ok")
    status_reason: str | None = _origin("what happened, where the status is not ok")
    created_at: str = _origin("UTC time at which the record was written", "")
    method: str = _way("name of the batching method", "")
    dataset: str = _origin("name of the dataset", "")
    dataset_source: str = _origin("hub, file, shipped (real texts) or profile (token lengths, random token ids)", "")
    dataset_detail: str = _origin("hub id and revision, file and hash, or profile and hash", "")
    dataset_form: str | None = _origin("what was read: texts of a field, chat messages, token ids, lengths alone")
    dataset_max_tokens: int | None = _origin("tokens at which prompts were cut; none: they were not")
    left_out_prompts: int | None = _origin("records of the dataset that are no prompts: empty, or as the paper has it")
    tokenizer: str | None = _origin("what turned text into tokens; none for a profile")
    model: str = _origin("name of the model", "")
    model_detail: str = _origin("hub id and commit, folder, or published shape", "")
    model_hash: str | None = _work("over the model's configuration and weights, whatever it is called")
    weights_source: str = _origin("hub, local, package or random", "")
    metric: str = _work("prefill: prompts in, KV computed; ttft: prompts in, every first new token on the host", "")
    protocol: str = _work("paper: what the authors' code does; modern: identical work for all methods", "")
    numerics: str | None = _work("authors: steps and types of the authors' code, under paper; none: ours")
    sample: str | None = _work("authors: the prompts of their code, whatever the seed; none: drawn by the seed")
    packing: str | None = _way("bin-packing algorithm, for methods that pack")
    forward: str | None = _way(
        "fused, compiled, graphs or transformers: what computes a batch; none: a serving engine of its own"
    )
    attention_asked: str | None = _way("attention kernel that was asked for; none: what auto takes")
    max_tokens_per_forward: int | None = _way("a batch of more tokens is computed by parts; none: it never is")
    attention: str | None = _origin("how attention is kept within prompts, and how rows are padded")
    passes: str | None = _origin(
        "what norms and rotary positions of the fused forward ran on: torch, compiled, or C++; none: another forward"
    )
    attention_kernel: str | None = _origin("attention kernels that ran, as one profiled pass showed them; none: unseen")
    attention_share: float | None = _figure("share of that pass's time that attention took")
    attention_pairs_ratio: float | None = _figure("query-key pairs that attention computed over those that are needed")
    compile_s: float | None = _figure(
        "compiling and capturing CUDA graphs, in all; none: there was nothing to", unit="s"
    )
    recompiled_timed: int | None = _figure("graphs compiled or captured within the timed passes, whose times hold that")
    ideal_attention_kernel: str | None = _origin("the same of the ideal, which takes the fastest that there is")
    batch_size: int = _work("prompts served together; dataset-prepacking: bins", 0)
    num_prompts: int = _work("prompts measured", 0)
    num_batches: int = _figure("batches that they make", 0)
    repeats: int = _setting("timed passes over the batches", 0)
    seed: int = _setting("of the sample, the shuffle, the order of methods and random weights", 0)
    device_name: str = _machine("GPU, or CPU with its cores", "")
    torch_version: str | None = _machine("version of torch, with its build")
    transformers_version: str | None = _machine("version of transformers")
    torch_threads: int | None = _machine("threads of torch's operations on the CPU")
    environment: str | None = _machine("variables of the environment that choose kernels or memory, where set")
    split: str | None = _machine("which layers are on which GPU, where device_map split the model")
    dtype: str = _work("type of weights and activations", "")
    loadbit: str = _work("bits of the weights through bitsandbytes; none: as dtype", "")
    faults: str | None = _work("measuring faults of the authors' code that were on, for demonstration; else empty")
    other_settings: str | None = _work(
        "settings that change what is measured and have no column of their own, where not the default"
    )
    arrivals: str | None = _work("how prompts arrive: poisson, gamma, trace; none: all are there from the start")
    rate: float | None = _work("prompts a second that were to arrive")
    policy: str | None = _way("who goes into the next batch, with what the policy was given")
    clock: str | None = _way("virtual: the device's idle time is passed over; real: it is waited for")
    slo_ms: float | None = _work("objective for the time from arrival to first token, milliseconds")
    ttft_mean_s: float | None = _figure("time from arrival to first token, mean", unit="s")
    ttft_mean_low_s: float | None = _figure("its 95 % interval, lower end: busy periods resampled", unit="s")
    ttft_mean_high_s: float | None = _figure("the same, upper end", unit="s")
    ttft_p50_s: float | None = _figure("time from arrival to first token, median", unit="s")
    ttft_p90_s: float | None = _figure("the same, 90th percentile", unit="s")
    ttft_p99_s: float | None = _figure("the same, 99th percentile", unit="s")
    ttft_p99_low_s: float | None = _figure("95 % interval of the 99th percentile, lower end", unit="s")
    ttft_p99_high_s: float | None = _figure("the same, upper end", unit="s")
    queue_mean_s: float | None = _figure("time from arrival to the start of the batch, mean", unit="s")
    queue_p99_s: float | None = _figure("the same, 99th percentile", unit="s")
    prompts_per_batch_mean: float | None = _figure("prompts of the batches that formed, mean")
    busy_share: float | None = _figure("share of the time from first arrival to last first token in which it computed")
    busy_periods: int | None = _figure("spans of that time in which the device was never idle")
    arrived_per_s: float | None = _figure("prompts a second that did arrive", unit="prompts / s")
    goodput_per_s: float | None = _figure("prompts a second whose first token came within slo_ms", unit="prompts / s")
    stable: bool | None = _figure(
        "the last prompts were served soon after they had come: the queue did not grow; none: too short a run to tell"
    )
    seconds_per_batch_mean: float | None = _figure("mean over batches and repeats", unit="s")
    seconds_per_batch_std: float | None = _figure("standard deviation over batches and repeats", unit="s")
    seconds_per_batch_p50: float | None = _figure("median over batches and repeats", unit="s")
    seconds_per_batch_p95: float | None = _figure("95th percentile over batches and repeats", unit="s")
    seconds_per_batch_ci_low: float | None = _figure("95 % interval of the mean, lower end", unit="s")
    seconds_per_batch_ci_high: float | None = _figure("the same, upper end", unit="s")
    seconds_per_prompt_mean: float | None = _figure("time of a pass over its prompts", unit="s")
    seconds_per_prompt_std: float | None = _figure("standard deviation of that over repeats", unit="s")
    useful_tokens_per_s: float | None = _figure(
        "tokens of real prompts per second; pads do not count", unit="tokens / s"
    )
    tokenize_s_mean: float | None = _figure(
        "phase, mean seconds per batch: text to token ids (paper protocol only)", unit="s"
    )
    plan_s_mean: float | None = _figure("phase: packing, and laying prompts in rows, on the host", unit="s")
    mask_s_mean: float | None = _figure("phase: masks, or what a kernel takes in their place", unit="s")
    transfer_s_mean: float | None = _figure("phase: rows to the device", unit="s")
    forward_s_mean: float | None = _figure("phase: the model", unit="s")
    unpack_s_mean: float | None = _figure("phase: packed KV to one cache per prompt", unit="s")
    decode_s_mean: float | None = _figure("phase: first tokens chosen and brought to the host", unit="s")
    harness_overhead_pct: float | None = _figure("wall time of the timed passes that no phase names", unit="%")
    speedup_over_full_batching: float | None = _figure("total time of full-batching over this method's, same prompts")
    speedup_ci_low: float | None = _figure("95 % interval of the speedup, lower end")
    speedup_ci_high: float | None = _figure("the same, upper end")
    speedup_verdict: str | None = _figure("faster, slower or inconclusive: is the interval beyond the noise floor")
    speedup_across_runs: bool | None = _origin("full-batching is of another run; only a report fills such speedups in")
    speedup_over_length_ordered: float | None = _figure("the same over length-ordered batching, an offline oracle")
    speedup_over_length_ordered_ci_low: float | None = _figure("its 95 % interval, lower end")
    speedup_over_length_ordered_ci_high: float | None = _figure("the same, upper end")
    noise_floor: float | None = _setting("difference from 1 that does not count as faster or slower; 0.01 is 1 %")
    intervals_rest_on_few: bool | None = _figure(
        "fewer than 5 batches (offline methods: repeats), or one repeat, behind the intervals"
    )
    fraction_of_ideal: float | None = _figure(
        "time of the fastest dense forward at hand of as many useful tokens over this method's"
    )
    fraction_of_ideal_ci_low: float | None = _figure("95 % interval of the fraction of ideal, lower end")
    fraction_of_ideal_ci_high: float | None = _figure("the same, upper end")
    outlier_samples: int | None = _figure("samples over 3 scaled MADs from their batch's median; needs 3 repeats")
    fraction_of_limit: float | None = _figure("least time at the measured rates of products and copies over this one's")
    useful_tflop_per_s: float | None = _figure(
        "least operations of the useful tokens over the time, 10**12 a second", unit="10**12 operations / s"
    )
    computed_tflop_per_s: float | None = _figure(
        "operations carried out, pads included; none: an engine of its own", unit="10**12 operations / s"
    )
    matmul_tflop_per_s: float | None = _figure(
        "rate of matrix products measured on the machine in this run", unit="10**12 operations / s"
    )
    useful_share_of_rate: float | None = _figure("useful_tflop_per_s over that rate")
    computed_share_of_rate: float | None = _figure("computed_tflop_per_s over that rate")
    useful_tokens: int | None = _figure("tokens of all prompts")
    computed_tokens: int | None = _figure(
        "token positions that pass through the model in a pass, pads included (not what fills up a CPU's products)"
    )
    padding_ratio: float | None = _figure("computed over useful tokens")
    rows_per_batch_mean: float | None = _figure("rows of a forward: prompts, or bins (the paper's r)")
    longest_prompt_tokens: int | None = _figure("tokens of the longest prompt")
    peak_memory_mb: float | None = _figure(
        "peak memory of a pass, MB of 2**20 bytes, largest repeat", unit="MB of 2**20 bytes"
    )
    must_hold_mb: float | None = _figure(
        "weights, KV of the prompts' own tokens, and logits, of the largest batch", unit="MB of 2**20 bytes"
    )
    resident_rest_mb: float | None = _figure(
        "resident memory before a pass that is not weights, CPU", unit="MB of 2**20 bytes"
    )
    memory_overhead_pct: float | None = _figure(
        "peak memory, less that of the process without weights, over must_hold_mb", unit="%"
    )
    memory_limit_mb: int | None = _work("memory at which allocations on the CPU were made to fail, where it was set")
    peak_memory_source: str | None = _origin("torch allocated (GPU) or process resident (CPU)")
    torch_peak_allocated_mb: float | None = _figure(
        "peak of tensors, less what serving engines beside it hold, GPU", unit="MB of 2**20 bytes"
    )
    torch_peak_reserved_mb: float | None = _figure("peak of torch's allocator, GPU", unit="MB of 2**20 bytes")
    nvml_process_memory_mb: float | None = _figure(
        "largest reading of the driver for this process, GPU", unit="MB of 2**20 bytes"
    )
    resident_peak_mb: float | None = _figure("peak resident memory of the process, CPU", unit="MB of 2**20 bytes")
    resident_before_mb: float | None = _figure(
        "resident memory before a pass: model and libraries, CPU", unit="MB of 2**20 bytes"
    )
    max_utilization_pct: float | None = _figure("largest reading in a pass, mean over repeats", unit="%")
    mean_utilization_pct: float | None = _figure("mean reading in a pass, mean over repeats", unit="%")
    max_utilization_std_pct: float | None = _figure("standard deviation over repeats", unit="%")
    mean_utilization_std_pct: float | None = _figure("standard deviation over repeats", unit="%")
    utilization_source: str | None = _origin("nvml (GPU), process (CPU, 100 = all cores busy) or none")
    utilization_windows: int | None = _figure("independent averaging windows in the shortest pass, or in the loop")
    utilization_valid: bool | None = _figure("whether they are enough (5); without, utilization is left out")
    utilization_loop_s: float | None = _figure(
        "untimed loop after the passes that utilization is from; none: passes", unit="s"
    )
    mean_memory_utilization_pct: float | None = _figure(
        "share of time in which the GPU's memory was read or written", unit="%"
    )
    other_cpu_pct: float | None = _figure(
        "share of the cores' time that other processes took in the passes, CPU", unit="%"
    )
    stolen_cpu_pct: float | None = _figure("share that the host of a virtual machine gave to others, CPU", unit="%")
    throttled_cpu_pct: float | None = _figure(
        "share of the passes in which a limit of the control group held it, CPU", unit="%"
    )
    cpu_clock_mean_mhz: float | None = _figure("mean clock of the cores, where the system tells it, CPU", unit="MHz")
    power_mean_w: float | None = _figure("mean power of the GPU, within the loop where there was one", unit="W")
    energy_j: float | None = _figure(
        "energy of the GPU in a pass by its own counter, J; of passes too short for its steps by the loop's power",
        unit="J",
    )
    joules_per_1000_useful_tokens: float | None = _figure(
        "that over thousands of useful tokens; pads do not count", unit="J"
    )
    sm_clock_mean_mhz: float | None = _figure("mean clock of the GPU's multiprocessors", unit="MHz")
    memory_clock_mean_mhz: float | None = _figure("mean clock of the GPU's memory", unit="MHz")
    temperature_max_c: float | None = _figure("highest temperature of the GPU, degrees Celsius", unit="degrees Celsius")
    throttle_reasons: str | None = _figure("what held the GPU's clocks down, by its driver; none: nothing did")
    other_gpu_processes: int | None = _figure("largest number of other compute processes on the GPU")
    other_gpu_processes_mb: float | None = _figure("largest reading of their memory, MB", unit="MB of 2**20 bytes")
    device_memory_used_mb: float | None = _figure(
        "largest reading of the GPU's memory in use, by all processes, MB", unit="MB of 2**20 bytes"
    )
    sampler_readings: int | None = _figure("times that the counters were read within the timed passes")
    telemetry_gaps: str | None = _origin("counters that gave nothing, or not always, each with the reason")
    verified_prompts: int | None = _figure("prompts whose first token and KV were checked against the prompt run alone")
    verified_max_abs_diff: float | None = _figure("largest difference of any key or value found by the check")
    verified_max_rel_diff: float | None = _figure("largest norm of a layer's difference over the norm of the layer")
    verified_near_ties: int | None = _figure("tokens that differ, the model being undecided between the two")
    invariant_tokens_alone_pct: float | None = _figure("first tokens that are equal where a prompt is alone", unit="%")
    invariant_kv_alone_pct: float | None = _figure("keys and values that are then equal in every bit", unit="%")
    invariant_tokens_other_pct: float | None = _figure("first tokens that are equal in another batch", unit="%")
    invariant_kv_other_pct: float | None = _figure("keys and values that are then equal in every bit", unit="%")
    generated_tokens: int | None = _figure(
        "tokens after the first, continued from the method's cache, compared likewise"
    )
    generated_equal_pct: float | None = _figure(
        "prompts whose whole continuation was equal, %; in an ok row the others left it at a near-tie", unit="%"
    )
    workload_fingerprint: str = _work("hash of all token ids and batch boundaries; only equal ones are compared", "")
    config_hash: str = _origin("hash of the resolved configuration", "")
    valid: bool | None = _origin("whether nothing speaks against relying on this measurement")
    invalid_reasons: str | None = _origin("what speaks against it, in words")
    notes: str | None = _origin("what a reader should know, and what speaks against nothing")

    @property
    def time_column(self) -> str:
        """The column that says how long it took: of a batch, or under load of a prompt, for there batches differ."""
        return "ttft_mean_s" if self.arrivals else "seconds_per_batch_mean"

    def interval(self, name: str) -> Interval | None:
        """A column with its 95 % interval, which may be NaN at both ends; None where the column has no value."""
        low, high = (getattr(self, end) for end in INTERVALS[name])
        value = getattr(self, name)
        if value is None:
            return None
        if low is None or high is None:
            low = high = math.nan
        return Interval(value, low, high, self._rests_on_few(name), self.doubted)

    def _rests_on_few(self, name: str) -> bool:
        """Whether too little is behind a column's interval to vouch for it, as ``stats`` has it."""
        if name == "speedup_over_length_ordered":  # only repeats are draws, whatever the method
            return 0 < self.repeats < FEW
        return name != "ttft_mean_s" and (bool(self.intervals_rest_on_few) or self.repeats == 1)

    @property
    def doubted(self) -> bool:
        """Whether something but faults on purpose speaks against relying on this measurement."""
        reasons = (self.invalid_reasons or "").split("; ")
        return self.valid is False and any(not reason.startswith(ON_PURPOSE) for reason in reasons)


@dataclass(frozen=True)
class RecordColumn:
    """A column as it is defined in ``Row``: its Python type as text, kind, meaning and unit."""

    name: str
    type: str
    kind: str
    doc: str
    unit: str


COLUMNS = {
    each.name: RecordColumn(each.name, str(each.type), **{key: each.metadata[key] for key in ("kind", "doc", "unit")})
    for each in fields(Row)
}
# Columns that have an interval, with the columns of its ends.
INTERVALS = {
    "seconds_per_batch_mean": ("seconds_per_batch_ci_low", "seconds_per_batch_ci_high"),
    "ttft_mean_s": ("ttft_mean_low_s", "ttft_mean_high_s"),
    "speedup_over_full_batching": ("speedup_ci_low", "speedup_ci_high"),
    "speedup_over_length_ordered": ("speedup_over_length_ordered_ci_low", "speedup_over_length_ordered_ci_high"),
    "fraction_of_ideal": ("fraction_of_ideal_ci_low", "fraction_of_ideal_ci_high"),
}


def odd(row: Row) -> str | None:
    """What of a row no program of ours writes, in words; None where it is as it should be."""
    for name, values in VALUES.items():
        if (value := getattr(row, name)) not in values:
            return f"{name} is {ascii(value)[:60]}, not one of {', '.join(values)}"
    if row.arrivals and row.rate is None:
        return f"arrivals is {ascii(row.arrivals)[:60]}, and rate is missing"
    return None


def parts(*kinds: str) -> tuple[str, ...]:
    """The names of the columns of these kinds."""
    return tuple(column.name for column in COLUMNS.values() if column.kind in kinds)


def key(row: Row, *kinds: str, but: tuple[str, ...] = ()) -> tuple[object, ...]:
    """Equal for rows that agree in all columns of these kinds, ``but`` for some.

    Under ``paper`` there is one forward only, which older records do not name.
    """
    return tuple(value_of(row, name) for name in parts(*kinds) if name not in but)


def value_of(row: Row, name: str) -> object:
    """A row's value as it is compared."""
    return None if name == "forward" and row.protocol == "paper" else getattr(row, name)


def batches_are_draws(row: Row) -> bool:
    """Whether batch b of a row's method is batch b of full-batching, and any batch could have been any other.

    Else only repeats are draws: the method has batches of its own, or every pass was shuffled anew on purpose.
    """
    return not method_of(row.method).needs_dataset and "own-shuffle" not in (row.faults or "")


def set_speedup(row: Row, speedup: Interval) -> None:
    """A row's speedup over full-batching, its interval and what that says."""
    row.speedup_over_full_batching = speedup.value
    row.speedup_ci_low, row.speedup_ci_high = speedup.low, speedup.high
    row.speedup_verdict = speedup.verdict(row.noise_floor or 0.0)
