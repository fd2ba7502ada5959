"""The record of a run: one flat row with units in its names, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from src.cli import UserError, warn

SCHEMA_VERSION = 1
RECORD_FILE = "record.json"
DRAFT = ".tmp-"  # how names begin of what is not finished
REPLACE_ATTEMPTS = 20
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
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
    quirks: str | None = _column("measuring faults of the authors' code that were on, for demonstration; else empty")
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
    noise_floor: float | None = _column("difference from 1 that does not count as faster or slower; 0.01 is 1 %")
    intervals_rest_on_few: bool | None = _column("fewer than 5 batches (length-ordered: repeats) behind the intervals")
    outlier_samples: int | None = _column("samples over 3 scaled MADs from their batch's median; needs 3 repeats")
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


def _draft_name() -> str:
    """A name that no other process, on no other machine that shares the disk, gives to a draft."""
    return f"{DRAFT}{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _abandoned(draft: Path) -> bool:
    """Whether the process that wrote a draft was on this machine and is gone."""
    host, _, rest = draft.name.removeprefix(DRAFT).rpartition("-")[0].rpartition("-")
    if host != platform.node() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def check_writable(results_dir: Path) -> None:
    """Create ``results_dir`` and try it, before anything is measured; clear away what killed processes left half done.

    Raises:
        UserError: nothing can be written there.
    """
    probe = results_dir / _draft_name()
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("", encoding="ascii")
        probe.unlink()
        for draft in filter(_abandoned, results_dir.glob(f"{DRAFT}*")):
            _rescue(draft, results_dir)
    except OSError as error:
        raise UserError(
            "results_dir", f"cannot write to '{results_dir}' ({error.strerror})", "name a writable folder"
        ) from None


def _rescue(draft: Path, results_dir: Path) -> None:
    """Put a finished record in its place whose writer was killed before it could; else remove the draft."""
    try:
        row = read(draft).row
        if not (results_dir / row.run_id).exists():
            draft.rename(results_dir / row.run_id)
    except (ValueError, OSError):
        pass
    shutil.rmtree(draft, ignore_errors=True)


def write(record: Record, results_dir: Path) -> Path:
    """Write ``results_dir/<run_id>/`` with record.json, samples.csv and config.yaml; it appears whole or not at all.

    An earlier record of the same run is replaced only once the new one is complete on disk. Others may write the same
    run at the same time: the last one stands.

    Raises:
        UserError: the folder cannot be written (full disk, no permission). The record is then saved in a temporary
            folder that the message names.
    """
    try:
        return _write(record, results_dir)
    except OSError as error:
        reason = error.strerror or str(error)
    try:
        saved = _write(record, Path(tempfile.mkdtemp(prefix="prepack-bench-saved-")))
        remedy = f"the finished record is saved: make room, then move {saved} there"
    except OSError:
        remedy = "free space or name another folder"
    raise UserError("results_dir", f"cannot write '{results_dir / record.row.run_id}' ({reason})", remedy)


def _write(record: Record, results_dir: Path) -> Path:
    import pandas
    import yaml

    final, draft, old = (results_dir / name for name in (record.row.run_id, _draft_name(), _draft_name()))
    content = {
        "schema_version": SCHEMA_VERSION,
        "row": {key: _plain(value) for key, value in asdict(record.row).items()},
        "prompt_lengths": record.prompt_lengths,
        "manifest": record.manifest,
    }
    files = {
        "samples.csv": pandas.DataFrame(record.samples).to_csv(index=False),
        "config.yaml": yaml.safe_dump(record.config, sort_keys=False),
        RECORD_FILE: json.dumps(content, indent=1),
    }
    try:
        draft.mkdir(parents=True)
        for name, text in files.items():
            with (draft / name).open("w", encoding="utf-8") as file:
                file.write(_without_secrets(text))
                file.flush()
                os.fsync(file.fileno())
        for attempt in range(REPLACE_ATTEMPTS):
            try:
                with contextlib.suppress(FileNotFoundError):
                    final.rename(old)
                draft.rename(final)
                return final
            except OSError as error:
                # Another process put its record of the same run there between the two renames: replace that one.
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY} or attempt == REPLACE_ATTEMPTS - 1:
                    raise
                shutil.rmtree(old, ignore_errors=True)
        raise AssertionError("unreachable")
    finally:
        if old.exists() and not final.exists():
            old.rename(final)
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


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


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved settings of a record; empty where they cannot be read."""
    import yaml

    try:
        return dict(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}


def read_all(results_dir: Path) -> Iterator[tuple[Path, Record]]:
    """Every readable record below a folder, in the order of their paths; an unreadable one is named and left out."""
    for path in sorted(results_dir.rglob(RECORD_FILE)):
        if any(part.startswith(DRAFT) for part in path.relative_to(results_dir).parts):
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


def _without_secrets(text: str) -> str:
    """Records are there to be shared: no home folder (and so no user's name), no token of a hub."""
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home + os.sep, "~" + os.sep).replace(home, "~")
    text = re.sub(r"/(home|Users)/[^/\s\"']+", "~", text)
    return TOKEN.sub("hf_(removed)", text)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
