"""The record of a run: one flat row with units in its names, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from src.cli import UserError, warn

SCHEMA_VERSION = 1
RECORD_FILE = "record.json"
STATUSES = ("ok", "oom", "timeout", "error", "gated", "incorrect", "skipped")


def _column(doc: str, default: Any = None) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass
class Row:
    """One method's measurement; the columns of ``summary.csv``. None where a value does not exist."""

    run_id: str = _column("names the record's folder; the same for the same settings, workload, machine and code", "")
    comparison_id: str = _column("the same for methods measured side by side in one process", "")
    status: str = _column(f"one of {', '.join(STATUSES)}", "ok")
    status_reason: str | None = _column("what happened, where the status is not ok")
    created_at: str = _column("UTC time at which the record was written", "")
    method: str = _column("full-batching, length-ordered or prepacking", "")
    dataset: str = _column("name of the dataset", "")
    dataset_source: str = _column("hub, file or profile (real token lengths, random token ids)", "")
    dataset_detail: str = _column("hub id and revision, file and hash, or profile and hash", "")
    tokenizer: str | None = _column("what turned text into tokens; none for a profile")
    model: str = _column("name of the model", "")
    model_detail: str = _column("hub id and commit, folder, or published shape", "")
    weights_source: str = _column("hub, local or random", "")
    metric: str = _column("prefill: prompts in, KV computed; ttft: prompts in, every first new token on the host", "")
    protocol: str = _column("paper: what the authors' code does; modern: identical work for all methods", "")
    packing: str | None = _column("bin-packing algorithm, for methods that pack")
    batch_size: int = _column("prompts served together", 0)
    num_prompts: int = _column("prompts measured", 0)
    num_batches: int = _column("batches that they make", 0)
    repeats: int = _column("timed passes over the batches", 0)
    seed: int = _column("of the sample, the shuffle, the order of methods and random weights", 0)
    device_name: str = _column("GPU, or CPU with its cores", "")
    dtype: str = _column("type of weights and activations", "")
    loadbit: str = _column("bits of the weights through bitsandbytes; none: as dtype", "")
    seconds_per_batch_mean: float | None = _column("mean over batches and repeats")
    seconds_per_batch_std: float | None = _column("standard deviation over batches and repeats")
    seconds_per_batch_p50: float | None = _column("median over batches and repeats")
    seconds_per_batch_p95: float | None = _column("95th percentile over batches and repeats")
    seconds_per_batch_ci_low: float | None = _column("95 % bootstrap interval of the mean, lower end")
    seconds_per_batch_ci_high: float | None = _column("the same, upper end")
    seconds_per_prompt_mean: float | None = _column("time of a pass over its prompts")
    useful_tokens_per_s: float | None = _column("tokens of real prompts per second; pads do not count")
    tokenize_s_mean: float | None = _column("phase, mean seconds per batch: text to token ids (paper protocol only)")
    plan_s_mean: float | None = _column("phase: packing, and laying prompts in rows, on the host")
    transfer_s_mean: float | None = _column("phase: rows to the device")
    forward_s_mean: float | None = _column("phase: the model")
    unpack_s_mean: float | None = _column("phase: packed KV to one cache per prompt")
    decode_s_mean: float | None = _column("phase: first tokens chosen and brought to the host")
    speedup_over_full_batching: float | None = _column("total time of full-batching over this method's, same prompts")
    speedup_ci_low: float | None = _column("95 % bootstrap interval of the speedup, lower end")
    speedup_ci_high: float | None = _column("the same, upper end")
    speedup_verdict: str | None = _column("faster, slower or inconclusive, by the interval")
    useful_tokens: int | None = _column("tokens of all prompts")
    computed_tokens: int | None = _column("token positions that pass through the model in a pass, pads included")
    padding_ratio: float | None = _column("computed over useful tokens")
    rows_per_batch_mean: float | None = _column("rows of a forward: prompts, or bins (the paper's r)")
    longest_prompt_tokens: int | None = _column("tokens of the longest prompt")
    peak_memory_mb: float | None = _column("peak memory of a pass, MB of 2**20 bytes, largest repeat")
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
    utilization_valid: bool | None = _column("whether they are enough (5) to believe the utilization")
    utilization_loop_s: float | None = _column("untimed loop after the passes that utilization is from; none: passes")
    mean_memory_utilization_pct: float | None = _column("share of time in which the GPU's memory was read or written")
    power_mean_w: float | None = _column("mean power of the GPU")
    energy_j: float | None = _column("energy of the GPU in a pass by its own counter, J, mean over repeats")
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
    verified_near_ties: int | None = _column("first tokens that differ, the model being undecided between the two")
    workload_fingerprint: str = _column("hash of all token ids and batch boundaries; only equal ones are compared", "")
    config_hash: str = _column("hash of the resolved configuration", "")
    valid: bool | None = _column("whether nothing speaks against relying on this measurement")
    invalid_reasons: str | None = _column("what speaks against it, in words")


COLUMNS = {column.name: str(column.metadata["doc"]) for column in fields(Row)}


@dataclass
class Record:
    """A row, the samples it sums up, and its provenance."""

    row: Row
    manifest: dict[str, Any]
    config: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)


def check_writable(results_dir: Path) -> None:
    """Create ``results_dir`` and try it, before anything is measured.

    Raises:
        UserError: nothing can be written there.
    """
    probe = results_dir / f".tmp-probe-{os.getpid()}"
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("", encoding="ascii")
        probe.unlink()
    except OSError as error:
        raise UserError(
            "results_dir", f"cannot write to '{results_dir}' ({error.strerror})", "name a writable folder"
        ) from None


def write(record: Record, results_dir: Path) -> Path:
    """Write ``results_dir/<run_id>/`` with record.json, samples.csv and config.yaml; it appears whole or not at all.

    An earlier record of the same run is replaced only once the new one is complete on disk.

    Raises:
        UserError: the folder cannot be written (full disk, no permission).
    """
    import pandas
    import yaml

    final = results_dir / record.row.run_id
    draft = results_dir / f".tmp-{record.row.run_id}-{os.getpid()}"
    old = results_dir / f".tmp-old-{record.row.run_id}-{os.getpid()}"
    content = {
        "schema_version": SCHEMA_VERSION,
        "row": {key: _plain(value) for key, value in asdict(record.row).items()},
        "prompt_lengths": record.prompt_lengths,
        "manifest": record.manifest,
    }
    try:
        draft.mkdir(parents=True)
        (draft / "samples.csv").write_text(pandas.DataFrame(record.samples).to_csv(index=False), encoding="utf-8")
        (draft / "config.yaml").write_text(yaml.safe_dump(record.config, sort_keys=False), encoding="utf-8")
        with (draft / RECORD_FILE).open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            final.rename(old)
        draft.rename(final)
    except OSError as error:
        if old.exists() and not final.exists():
            old.rename(final)
        reason = error.strerror or str(error)
        raise UserError(
            "results_dir", f"cannot write '{final}' ({reason})", "free space or name another folder"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
    return final


def read(folder: Path) -> Record:
    """Read one record; the samples stay on disk until asked for with ``read_samples``.

    Raises:
        ValueError: the folder's record is cut short, not JSON, or not of this schema.
    """
    try:
        content = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {content['schema_version']}, this program reads {SCHEMA_VERSION}")
        row = Row(**{key: value for key, value in content["row"].items() if key in COLUMNS})
        if row.status not in STATUSES or not row.run_id:
            raise ValueError("no run_id or an unknown status")
        return Record(row, content["manifest"], {}, prompt_lengths=content["prompt_lengths"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def read_all(results_dir: Path) -> Iterator[tuple[Path, Record]]:
    """Every readable record below a folder, in the order of their paths; an unreadable one is named and left out."""
    for path in sorted(results_dir.rglob(RECORD_FILE)):
        if any(part.startswith(".tmp-") for part in path.parts):
            continue
        try:
            yield path.parent, read(path.parent)
        except ValueError as error:
            warn(f"{path.parent}: record left out ({error})")


def sample_row(repeat: int, place: int, batch: int, numbers: Mapping[str, int], phases: Mapping[str, float],
               host_seconds: float, phase_names: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """One line of samples.csv: a batch, in a repeat, with its total and its phases in seconds."""
    return {
        "repeat": repeat,
        "place_in_repeat": place,
        "batch": batch,
        **numbers,
        "seconds": sum(phases.values()),
        "host_seconds": host_seconds,
        **{f"{name}_s": phases.get(name) for name in phase_names},
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
