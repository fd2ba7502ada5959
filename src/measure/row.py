"""The row: what is known of one method's measurement, flat, with units in the names and a word on each column."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

STATUSES = ("ok", "oom", "timeout", "error", "gated", "incorrect", "skipped")


# What a column has to do with which measurements are the same; all others are figures, or say where they come from.
WORK = "what was asked of every method: only equal work is compared, on one machine or on several"
HOW = "how a method went about it: tells measurements of one work apart"
MACHINE = "what computed it: the same within a table, what differs where machines or versions are compared"


def _column(doc: str, default: Any = None, part: str | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "part": part})


@dataclass
class Row:
    """One method's measurement; the columns of ``summary.csv``. None where a value does not exist."""

    run_id: str = _column("names the record's folder; the same for the same settings, workload, machine and code", "")
    comparison_id: str = _column("the same for methods measured side by side in one process", "")
    status: str = _column(f"one of {', '.join(STATUSES)}", "ok")
    status_reason: str | None = _column("what happened, where the status is not ok")
    created_at: str = _column("UTC time at which the record was written", "")
    method: str = _column("name of the batching method", "", part=HOW)
    dataset: str = _column("name of the dataset", "")
    dataset_source: str = _column("hub, file or profile (token lengths, random token ids)", "")
    dataset_detail: str = _column("hub id and revision, file and hash, or profile and hash", "")
    dataset_max_tokens: int | None = _column("tokens at which prompts were cut; none: they were not")
    left_out_prompts: int | None = _column("records of the dataset that are no prompts: empty, or as the paper has it")
    tokenizer: str | None = _column("what turned text into tokens; none for a profile")
    model: str = _column("name of the model", "")
    model_detail: str = _column("hub id and commit, folder, or published shape", "")
    model_hash: str | None = _column("over the model's configuration and weights, whatever it is called", part=WORK)
    weights_source: str = _column("hub, local or random", "")
    metric: str = _column(
        "prefill: prompts in, KV computed; ttft: prompts in, every first new token on the host", "", part=WORK
    )
    protocol: str = _column("paper: what the authors' code does; modern: identical work for all methods", "", part=WORK)
    packing: str | None = _column("bin-packing algorithm, for methods that pack", part=HOW)
    forward: str | None = _column(
        "fused or transformers: what computes a batch; none: a serving engine of its own", part=HOW
    )
    max_tokens_per_forward: int | None = _column(
        "a batch of more tokens is computed by parts; none: it never is", part=HOW
    )
    attention: str | None = _column("how attention is kept within prompts, and how rows are padded")
    attention_kernel: str | None = _column("attention kernels that ran, as one profiled pass showed them; none: unseen")
    ideal_attention_kernel: str | None = _column("the same of the ideal, which takes the fastest that there is")
    batch_size: int = _column("prompts served together; dataset-prepacking: bins", 0, part=WORK)
    num_prompts: int = _column("prompts measured", 0, part=WORK)
    num_batches: int = _column("batches that they make", 0)
    repeats: int = _column("timed passes over the batches", 0)
    seed: int = _column("of the sample, the shuffle, the order of methods and random weights", 0)
    device_name: str = _column("GPU, or CPU with its cores", "", part=MACHINE)
    torch_version: str | None = _column("version of torch, with its build", part=MACHINE)
    transformers_version: str | None = _column("version of transformers", part=MACHINE)
    torch_threads: int | None = _column("threads of torch's operations on the CPU", part=MACHINE)
    environment: str | None = _column(
        "variables of the environment that choose kernels or memory, where set", part=MACHINE
    )
    split: str | None = _column("which layers are on which GPU, where device_map split the model", part=MACHINE)
    dtype: str = _column("type of weights and activations", "", part=WORK)
    loadbit: str = _column("bits of the weights through bitsandbytes; none: as dtype", "", part=WORK)
    quirks: str | None = _column(
        "measuring faults of the authors' code that were on, for demonstration; else empty", part=WORK
    )
    seconds_per_batch_mean: float | None = _column("mean over batches and repeats")
    seconds_per_batch_std: float | None = _column("standard deviation over batches and repeats")
    seconds_per_batch_p50: float | None = _column("median over batches and repeats")
    seconds_per_batch_p95: float | None = _column("95th percentile over batches and repeats")
    seconds_per_batch_ci_low: float | None = _column("95 % interval of the mean, lower end")
    seconds_per_batch_ci_high: float | None = _column("the same, upper end")
    seconds_per_prompt_mean: float | None = _column("time of a pass over its prompts")
    useful_tokens_per_s: float | None = _column("tokens of real prompts per second; pads do not count")
    tokenize_s_mean: float | None = _column("phase, mean seconds per batch: text to token ids (paper protocol only)")
    plan_s_mean: float | None = _column("phase: packing, and laying prompts in rows, on the host")
    transfer_s_mean: float | None = _column("phase: rows to the device")
    forward_s_mean: float | None = _column("phase: the model")
    unpack_s_mean: float | None = _column("phase: packed KV to one cache per prompt")
    decode_s_mean: float | None = _column("phase: first tokens chosen and brought to the host")
    harness_overhead_pct: float | None = _column("wall time of the timed passes that no phase names")
    speedup_over_full_batching: float | None = _column("total time of full-batching over this method's, same prompts")
    speedup_ci_low: float | None = _column("95 % interval of the speedup, lower end")
    speedup_ci_high: float | None = _column("the same, upper end")
    speedup_verdict: str | None = _column("faster, slower or inconclusive: is the interval beyond the noise floor")
    speedup_across_runs: bool | None = _column("full-batching is of another run; only a report fills such speedups in")
    speedup_over_length_ordered: float | None = _column("the same over length-ordered batching, an offline oracle")
    speedup_over_length_ordered_ci_low: float | None = _column("its 95 % interval, lower end")
    speedup_over_length_ordered_ci_high: float | None = _column("the same, upper end")
    noise_floor: float | None = _column("difference from 1 that does not count as faster or slower; 0.01 is 1 %")
    intervals_rest_on_few: bool | None = _column("fewer than 5 batches (offline methods: repeats) behind the intervals")
    fraction_of_ideal: float | None = _column("time of a dense forward of as many useful tokens over this method's")
    fraction_of_ideal_ci_low: float | None = _column("95 % interval of the fraction of ideal, lower end")
    fraction_of_ideal_ci_high: float | None = _column("the same, upper end")
    outlier_samples: int | None = _column("samples over 3 scaled MADs from their batch's median; needs 3 repeats")
    fraction_of_limit: float | None = _column("least time at the measured rates of products and copies over this one's")
    useful_tflop_per_s: float | None = _column("least operations of the useful tokens over the time, 10**12 a second")
    computed_tflop_per_s: float | None = _column("operations carried out, pads included; none: an engine of its own")
    matmul_tflop_per_s: float | None = _column("rate of matrix products measured on the machine in this run")
    useful_share_of_rate: float | None = _column("useful_tflop_per_s over that rate")
    computed_share_of_rate: float | None = _column("computed_tflop_per_s over that rate")
    useful_tokens: int | None = _column("tokens of all prompts")
    computed_tokens: int | None = _column("token positions that pass through the model in a pass, pads included")
    padding_ratio: float | None = _column("computed over useful tokens")
    rows_per_batch_mean: float | None = _column("rows of a forward: prompts, or bins (the paper's r)")
    longest_prompt_tokens: int | None = _column("tokens of the longest prompt")
    peak_memory_mb: float | None = _column("peak memory of a pass, MB of 2**20 bytes, largest repeat")
    must_hold_mb: float | None = _column("weights, KV of the prompts' own tokens, and logits, of the largest batch")
    resident_rest_mb: float | None = _column("resident memory before a pass that is not weights, CPU")
    memory_overhead_pct: float | None = _column(
        "peak memory, less that of the process without weights, over must_hold_mb"
    )
    memory_limit_mb: int | None = _column(
        "memory at which allocations on the CPU were made to fail, where it was set", part=WORK
    )
    peak_memory_source: str | None = _column("torch allocated (GPU) or process resident (CPU)")
    torch_peak_allocated_mb: float | None = _column("peak of tensors, GPU")
    torch_peak_reserved_mb: float | None = _column("peak of torch's allocator, GPU")
    nvml_process_memory_mb: float | None = _column("largest reading of the driver for this process, GPU")
    resident_peak_mb: float | None = _column("peak resident memory of the process, CPU")
    resident_before_mb: float | None = _column("resident memory before a pass: model and libraries, CPU")
    max_utilization_pct: float | None = _column("largest reading in a pass, mean over repeats")
    mean_utilization_pct: float | None = _column("mean reading in a pass, mean over repeats")
    max_utilization_std_pct: float | None = _column("standard deviation over repeats")
    mean_utilization_std_pct: float | None = _column("standard deviation over repeats")
    utilization_source: str | None = _column("nvml (GPU), process (CPU, 100 = all cores busy) or none")
    utilization_windows: int | None = _column("independent averaging windows in the shortest pass, or in the loop")
    utilization_valid: bool | None = _column("whether they are enough (5); without, utilization is left out")
    utilization_loop_s: float | None = _column("untimed loop after the passes that utilization is from; none: passes")
    mean_memory_utilization_pct: float | None = _column("share of time in which the GPU's memory was read or written")
    other_cpu_pct: float | None = _column("share of the cores' time that other processes took in the passes, CPU")
    stolen_cpu_pct: float | None = _column("share that the host of a virtual machine gave to others, CPU")
    throttled_cpu_pct: float | None = _column("share of the passes in which a limit of the control group held it, CPU")
    cpu_clock_mean_mhz: float | None = _column("mean clock of the cores, where the system tells it, CPU")
    power_mean_w: float | None = _column("mean power of the GPU")
    energy_j: float | None = _column("energy of the GPU in a pass by its own counter, J, mean over repeats")
    joules_per_1000_useful_tokens: float | None = _column("that over thousands of useful tokens; pads do not count")
    sm_clock_mean_mhz: float | None = _column("mean clock of the GPU's multiprocessors")
    memory_clock_mean_mhz: float | None = _column("mean clock of the GPU's memory")
    temperature_max_c: float | None = _column("highest temperature of the GPU, degrees Celsius")
    throttle_reasons: str | None = _column("what held the GPU's clocks down, by its driver; none: nothing did")
    other_gpu_processes: int | None = _column("largest number of other compute processes on the GPU")
    other_gpu_processes_mb: float | None = _column("largest reading of their memory, MB")
    device_memory_used_mb: float | None = _column("largest reading of the GPU's memory in use, by all processes, MB")
    sampler_readings: int | None = _column("times that the counters were read within the timed passes")
    telemetry_gaps: str | None = _column("counters that gave nothing, or not always, each with the reason")
    verified_prompts: int | None = _column("prompts whose first token and KV were checked against the prompt run alone")
    verified_max_abs_diff: float | None = _column("largest difference of any key or value found by the check")
    verified_max_rel_diff: float | None = _column("largest norm of a layer's difference over the norm of the layer")
    verified_near_ties: int | None = _column("tokens that differ, the model being undecided between the two")
    generated_tokens: int | None = _column(
        "tokens after the first, continued from the method's cache, compared likewise"
    )
    generated_equal_pct: float | None = _column(
        "prompts whose whole continuation was equal, %; in an ok row the others left it at a near-tie"
    )
    workload_fingerprint: str = _column(
        "hash of all token ids and batch boundaries; only equal ones are compared", "", part=WORK
    )
    config_hash: str = _column("hash of the resolved configuration", "")
    valid: bool | None = _column("whether nothing speaks against relying on this measurement")
    invalid_reasons: str | None = _column("what speaks against it, in words")
    notes: str | None = _column("what a reader should know, and what speaks against nothing")


COLUMNS = {column.name: str(column.metadata["doc"]) for column in fields(Row)}


def parts(part: str) -> tuple[str, ...]:
    """The columns that are ``WORK``, ``HOW`` or ``MACHINE``."""
    return tuple(column.name for column in fields(Row) if column.metadata["part"] == part)
