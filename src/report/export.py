"""For other tools: the records as PyTorch's benchmark database takes them, and with the keys of ``vllm bench``.

https://github.com/pytorch/pytorch/wiki/How-to-integrate-with-PyTorch-OSS-benchmark-database describes the first; the
second are the result files of ``vllm bench serve``, ``throughput`` and ``latency``. docs/experiments.md says what each
key holds here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from ..cli import warn
from ..records.row import COLUMNS, HOW, INTERVALS, MACHINE, SETTING, WORK, Row, parts
from ..records.store import Record

BENCHMARK_FILE, VLLM_FILE = "benchmark.json", "vllm-bench.json"
METRICS = (
    "seconds_per_batch_mean", "seconds_per_prompt_mean", "useful_tokens_per_s", "speedup_over_full_batching",
    "speedup_over_length_ordered", "fraction_of_ideal", "fraction_of_limit", "padding_ratio", "peak_memory_mb",
    "max_utilization_pct", "mean_utilization_pct", "joules_per_1000_useful_tokens",
)  # fmt: skip
# What tells two measurements apart, and whether to rely on one.
DESCRIBED = (
    "run_id", "comparison_id", "experiment", "created_at", "dataset", "dataset_detail", "num_batches",
    *parts(WORK, HOW, MACHINE, SETTING), "intervals_rest_on_few", "utilization_valid", "valid", "invalid_reasons",
)  # fmt: skip
# Keys that vllm bench does not have, beside those that it has, as its own --metadata puts some there.
BESIDE = (
    "method", "metric", "protocol", "dataset", "batch_size", "num_batches", "repeats", "seed", "device_name", "dtype",
    "loadbit", "faults", "model_detail", "workload_fingerprint", "valid", "invalid_reasons",
)  # fmt: skip
SPREAD = ("mean", "median", "std", "p99")
# There is no traffic here, and nothing is decoded beyond a first token.
NOT_HERE = (
    "request_rate", "burstiness", "max_concurrency", "request_goodput", "output_throughput",
    *(f"{what}_{of}_ms" for of in ("tpot", "itl", "e2el") for what in SPREAD),
)  # fmt: skip
LATENCY_PERCENTAGES = (10, 25, 50, 75, 90, 99)  # of vllm bench latency


def write_exports(records: Sequence[Record], folder: Path) -> None:
    """Write benchmark.json and vllm-bench.json of the records whose status is ok, but for those under load.

    Under load a prompt's TTFT holds the time that it waited, and the keys below are of batches that did not wait.

    Raises:
        OSError: a file cannot be written.
    """
    at_once = [each for each in records if not each.row.arrivals]
    found = [each for each in at_once if each.row.status == "ok" and each.row.seconds_per_batch_mean is not None]
    timed = [(record, _samples(record)) for record in found]
    for left, why in ((len(at_once) - len(timed), "for want of a time"), (len(records) - len(at_once), "under load")):
        if left:
            warn(f"not in {BENCHMARK_FILE} and {VLLM_FILE}, {why}: {left} of the records")
    benchmark = [each for record, samples in timed for each in benchmark_objects(record, samples)]
    for name, content in ((BENCHMARK_FILE, benchmark), (VLLM_FILE, [vllm_object(*each) for each in timed])):
        (folder / name).write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def benchmark_objects(record: Record, samples: pandas.DataFrame | None) -> list[dict[str, Any]]:
    """An object for each metric that the record has. Its database has no null: what is not known is absent.

    Args:
        samples: what ``_samples`` gives; seconds per batch then have a value per repeat, the others have one value.
    """
    row, made = record.row, record.manifest
    about = _texts({name: getattr(row, name) for name in DESCRIBED})
    shared = {
        "benchmark": {"name": "prepack-bench", "mode": "inference", "dtype": row.dtype, "extra_info": about},
        "model": {
            "name": _model_id(row), "type": "causal language model", "backend": row.method,
            "origins": [row.weights_source],
            "extra_info": _texts({"model": row.model, "model_detail": row.model_detail}),
        },
        "runners": [_runner(row, made)],
        "dependencies": _dependencies(made),
    }  # fmt: skip
    objects = []
    for name in METRICS:
        value = getattr(row, name)
        if value is None or not math.isfinite(value):
            continue
        values = [float(value)]
        if name == "seconds_per_batch_mean" and samples is not None:
            values = samples.groupby("repeat")["seconds"].mean().tolist()
        low, high = (getattr(row, end) for end in INTERVALS[name]) if name in INTERVALS else (None, None)
        more = _texts({"unit": COLUMNS[name].unit or None, "interval_low": low, "interval_high": high})
        objects.append({**shared, "metric": {"name": name, "benchmark_values": values, "extra_info": more}})
    return objects


def vllm_object(record: Record, samples: pandas.DataFrame | None) -> dict[str, Any]:
    """The keys of ``vllm bench`` for one record, of a pass over all prompts; None where there is no such value.

    Args:
        samples: what ``_samples`` gives; without them there is no TTFT and no latency.
    """
    row = record.row
    first = row.metric == "ttft"
    duration = (row.seconds_per_batch_mean or 0.0) * row.num_batches  # s, mean over repeats
    outputs = row.num_prompts if first else 0
    tokens = None if row.useful_tokens is None else row.useful_tokens + outputs
    by_batch = samples["seconds"].to_numpy() if samples is not None and first else None
    by_prompt = np.repeat(by_batch, samples["prompts"]) if samples is not None and by_batch is not None else None

    def rate(count: int | None) -> float | None:
        return count / duration if count is not None and duration else None

    return {
        "date": row.created_at[:19].replace("-", "").replace(":", "").replace("T", "-") or None,  # UTC
        "backend": row.method, "label": row.run_id, "model_id": _model_id(row), "tokenizer_id": row.tokenizer,
        "num_prompts": row.num_prompts, "duration": duration, "completed": row.num_prompts, "failed": 0,
        "total_input_tokens": row.useful_tokens, "total_output_tokens": outputs,
        "request_throughput": rate(row.num_prompts), "total_token_throughput": rate(tokens),
        "ttft_is_of": "batch" if first else None,
        **_spread(by_prompt, "ttft"),
        **_spread(by_batch, "batch_ttft"),
        **dict.fromkeys(NOT_HERE),
        "elapsed_time": duration, "num_requests": row.num_prompts, "total_num_tokens": tokens,
        "requests_per_second": rate(row.num_prompts), "tokens_per_second": rate(tokens),
        **_latency(by_batch),
        **{name: getattr(row, name) for name in BESIDE},
    }  # fmt: skip


def _samples(record: Record) -> pandas.DataFrame | None:
    """Repeat, prompts and seconds of each timed batch; None, and a note, where they cannot be read."""
    kinds = {"repeat": "int64", "prompts": "int64", "seconds": "float64"}
    try:
        table = record.sample_table()[list(kinds)].astype(kinds)
        if table.empty or not np.isfinite(table["seconds"]).all() or (table["prompts"] < 1).any():
            raise ValueError("not a time and prompts for each batch")
        return table
    except (OSError, ValueError, KeyError) as error:
        warn(f"{record.row.run_id}: exported without its samples, which cannot be read ({error})")
        return None


def _spread(seconds: NDArray[np.float64] | None, name: str) -> dict[str, float | None]:
    """Mean, median, standard deviation and 99th percentile in ms, by the names of vllm bench."""
    keys = [f"{what}_{name}_ms" for what in SPREAD]
    if seconds is None:
        return dict.fromkeys(keys)
    values = (seconds.mean(), np.median(seconds), seconds.std(), np.percentile(seconds, 99))
    return {key: 1000 * float(value) for key, value in zip(keys, values, strict=True)}


def _latency(seconds: NDArray[np.float64] | None) -> dict[str, Any]:
    """The keys of ``vllm bench latency``, in s."""
    if seconds is None:
        return dict.fromkeys(("avg_latency", "latencies", "percentiles"))
    percentiles = {str(share): float(np.percentile(seconds, share)) for share in LATENCY_PERCENTAGES}
    return {"avg_latency": float(seconds.mean()), "latencies": seconds.tolist(), "percentiles": percentiles}


def _model_id(row: Row) -> str:
    """The hub's id where the weights are the hub's, as elsewhere; else the name that the model has here."""
    return row.model_detail.partition("@")[0] if row.weights_source == "hub" and row.model_detail else row.model


def _runner(row: Row, made: dict[str, Any]) -> dict[str, Any]:
    """The machine. Memory is in whole GB of 2**30 bytes, as the database takes no fractions."""
    names = {"type": "system", "cpu_info": "cpu", "cpu_count": "cpu_cores", "gpu_info": "gpu"}
    memory = {"avail_mem_in_gb": "available_memory_mb", "avail_gpu_mem_in_gb": "gpu_memory_mb"}
    known = _known({key: made.get(name) for key, name in names.items()})
    known |= {key: int(made[name] // 1024) for key, name in memory.items() if made.get(name) is not None}
    more = ("python", "torch_threads", "cuda", "nvidia_driver", "gpu_compute_capability", "gpu_power_limit_w")
    return {"name": row.device_name, **known, "extra_info": _texts({name: made.get(name) for name in more})}


def _dependencies(made: dict[str, Any]) -> dict[str, Any]:
    code = _texts({name: made.get(name) for name in ("code_hash", "git_dirty")})
    versions = {name: {"version": version} for name, version in _known(made.get("packages") or {}).items()}
    return {"prepack-bench": _known({"sha": made.get("git_commit"), "extra_info": code}), **versions}


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _finite(values).items() if value is not None}


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Extra information, in which the database takes texts only."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in _known(values).items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
