"""Records for other tools: exact keys and values, what is not known, and the command that writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.records.row import Row
from src.records.store import Record, write
from src.report import __main__ as report
from src.report.export import write_exports

SECONDS = [[1.0, 3.0], [2.0, 4.0]]  # [repeats, batches], of 3 prompts and 1
MANIFEST = {
    "python": "3.12.1", "system": "Linux 6.1", "cpu": "Some CPU", "cpu_cores": 2, "torch_threads": 2,
    "available_memory_mb": 2600.0, "packages": {"torch": "2.13.0", "transformers": "5.23.0", "bitsandbytes": None},
    "git_commit": "a" * 40, "git_dirty": False, "code_hash": "b" * 12, "float32_matmul_precision": "highest",
    "large_pages": False,
}  # fmt: skip


def record(**changes: Any) -> Record:
    """Two batches of three prompts and one, twice: 5 s a pass."""
    values: dict[str, Any] = {
        "run_id": "prepacking-mmlu-1", "comparison_id": "mmlu-1", "created_at": "2026-01-02T03:04:05+00:00",
        "method": "prepacking", "dataset": "mmlu", "dataset_source": "profile", "model": "llama-15m",
        "model_detail": "random, shape llama-15m", "weights_source": "random", "metric": "ttft", "protocol": "modern",
        "batch_size": 3, "num_prompts": 4, "num_batches": 2, "repeats": 2, "device_name": "Some CPU, 2 cores",
        "dtype": "float32", "loadbit": "none", "useful_tokens": 96, "workload_fingerprint": "f00", "valid": True,
        "seconds_per_batch_mean": 2.5, "seconds_per_batch_ci_low": 2.0, "seconds_per_batch_ci_high": math.nan,
        "useful_tokens_per_s": 19.2,
    }  # fmt: skip
    samples = [
        {"repeat": repeat, "batch": batch, "prompts": 3 if batch == 0 else 1, "seconds": seconds}
        for repeat, batches in enumerate(SECONDS)
        for batch, seconds in enumerate(batches)
    ]
    return Record(Row(**(values | changes)), MANIFEST, {}, samples, [10, 20, 30, 36])


def exported(folder: Path, *records: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Both files, read as strictly as JSON asks."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    write_exports(records, folder)
    both = [(folder / name).read_text(encoding="utf-8") for name in ("benchmark.json", "vllm-bench.json")]
    benchmark, vllm = (json.loads(text, parse_constant=refuse) for text in both)
    return benchmark, vllm


def test_pytorchs_database_gets_an_object_for_each_metric(tmp_path: Path) -> None:
    first, second = exported(tmp_path, record())[0]
    assert list(first) == ["benchmark", "model", "runners", "dependencies", "metric"]
    # The mean of each repeat, and no end of an interval that is not a number.
    assert first["metric"] == {
        "name": "seconds_per_batch_mean",
        "benchmark_values": [2.0, 3.0],
        "extra_info": {"unit": "s", "interval_low": "2.0"},
    }
    assert second["metric"] == {
        "name": "useful_tokens_per_s",
        "benchmark_values": [19.2],
        "extra_info": {"unit": "tokens / s"},
    }
    about = first["benchmark"].pop("extra_info")
    assert first["benchmark"] == {"name": "prepack-bench", "mode": "inference", "dtype": "float32"}
    assert (about["method"], about["batch_size"], about["valid"]) == ("prepacking", "3", "true")
    assert "faults" not in about
    assert first["model"] == {
        "name": "llama-15m",
        "type": "causal language model",
        "backend": "prepacking",
        "origins": ["random"],
        "extra_info": {"model": "llama-15m", "model_detail": "random, shape llama-15m"},
    }
    (runner,) = first["runners"]
    assert runner == {
        "name": "Some CPU, 2 cores",
        "type": "Linux 6.1",
        "cpu_info": "Some CPU",
        "cpu_count": 2,
        "avail_mem_in_gb": 2,
        "extra_info": {"python": "3.12.1", "torch_threads": "2"},
    }
    assert first["dependencies"] == {
        "prepack-bench": {"sha": "a" * 40, "extra_info": {"code_hash": "b" * 12, "git_dirty": "false"}},
        "torch": {"version": "2.13.0"},
        "transformers": {"version": "5.23.0"},
    }


def test_its_maps_hold_texts_and_nothing_is_null(tmp_path: Path) -> None:
    def check(value: Any) -> None:
        assert value is not None
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            assert name != "extra_info" or all(isinstance(text, str) for text in each.values())
            if isinstance(each, dict | list):
                check(each)

    check(exported(tmp_path, record(padding_ratio=math.inf, faults="no-sync", valid=None))[0])


def test_vllms_keys_for_a_ttft(tmp_path: Path) -> None:
    (found,) = exported(tmp_path, record(weights_source="hub", model_detail="org/model@c0ffee"))[1]
    expected = {
        "date": "20260102-030405", "backend": "prepacking", "label": "prepacking-mmlu-1", "model_id": "org/model",
        "tokenizer_id": None, "num_prompts": 4, "completed": 4, "failed": 0, "duration": 5.0,
        "total_input_tokens": 96, "total_output_tokens": 4, "request_throughput": 0.8, "output_throughput": None,
        "total_token_throughput": 20.0, "request_rate": None, "max_concurrency": None, "ttft_is_of": "batch",
        # Over prompts: 1, 1, 1, 3 s in one repeat, 2, 2, 2, 4 s in the other.
        "mean_ttft_ms": 2000.0, "median_ttft_ms": 2000.0, "std_ttft_ms": 1000.0, "p99_ttft_ms": 3930.0,
        # Over batches: 1, 2, 3, 4 s.
        "mean_batch_ttft_ms": 2500.0, "median_batch_ttft_ms": 2500.0, "std_batch_ttft_ms": 1000 * math.sqrt(1.25),
        "p99_batch_ttft_ms": 3970.0, "elapsed_time": 5.0, "num_requests": 4, "total_num_tokens": 100,
        "requests_per_second": 0.8, "tokens_per_second": 20.0, "avg_latency": 2.5, "metric": "ttft", "valid": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=False)
    assert found["latencies"] == [1.0, 3.0, 2.0, 4.0]
    assert list(found["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    decoding = [f"{what}_{of}_ms" for of in ("tpot", "itl", "e2el") for what in ("mean", "median", "std", "p99")]
    assert {found[name] for name in decoding} == {None}


def test_a_prefill_has_no_ttft_and_no_output(tmp_path: Path) -> None:
    (found,) = exported(tmp_path, record(metric="prefill"))[1]
    assert (found["total_output_tokens"], found["total_token_throughput"]) == (0, 19.2)
    empty = {name for name in found if "ttft" in name or "latenc" in name}
    assert len(empty) == 11
    assert {found[name] for name in empty} == {None}


def test_records_without_a_time_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = record(status="oom", seconds_per_batch_mean=None), record(status="incorrect")
    assert exported(tmp_path, *failed) == ([], [])
    assert "for want of a time: 2 of the records" in capsys.readouterr().err


def test_runs_under_load_are_left_out_for_their_ttft_holds_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, vllm = exported(tmp_path, record(), record(arrivals="poisson", rate=8.0, ttft_mean_s=2.0))
    assert len(vllm) == 1
    assert {each["benchmark"]["extra_info"].get("arrivals") for each in benchmark} == {None}
    assert "under load: 1 of the records" in capsys.readouterr().err


def test_samples_that_cannot_be_read_leave_the_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(record(), tmp_path / "results")
    for text in ("", "repeat,prompts,seconds\n", "repeat,prompts,seconds\n0,1,\n", "repeat\n0\n"):
        (folder / "samples.csv").write_text(text, encoding="utf-8")
        lost = record()
        lost.folder = folder
        (first, _), (found,) = exported(tmp_path, lost)
        assert first["metric"]["benchmark_values"] == [2.5]
        assert (found["duration"], found["mean_ttft_ms"], found["latencies"]) == (5.0, None, None)
    assert "exported without its samples" in capsys.readouterr().err


def test_the_command_writes_them_when_asked(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    write(record(), tmp_path / "results")
    out = tmp_path / "results" / "report"
    code, _, _ = call(report.main, f"results_dir={tmp_path / 'results'}")
    assert (code, (out / "benchmark.json").exists(), (out / "vllm-bench.json").exists()) == (0, False, False)
    code, said, _ = call(report.main, f"results_dir={tmp_path / 'results'}", "format=json")
    assert code == 0
    for name in ("benchmark.json", "vllm-bench.json", "report.html"):
        assert str(out / name) in said
    (found,) = json.loads((out / "vllm-bench.json").read_text(encoding="utf-8"))
    assert found["mean_ttft_ms"] == 2000.0  # from samples.csv
    assert len(json.loads((out / "benchmark.json").read_text(encoding="utf-8"))) == 2


@pytest.mark.parametrize("given", ["xml", "JSON", "''"])
def test_an_unknown_format_is_one_clear_line(given: str, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call(report.main, f"format={given}")
    assert (code, out) == (2, "")
    name = given.strip("'")
    assert err == f"error: format: unknown '{name}'; choose one of page, json\n"
