"""Whole comparisons on a tiny model: what is recorded, what is resumed, and what failures leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import yaml
from conftest import fail_for

from src.cli import UserError
from src.compose import compose
from src.config import Config
from src.measure import memory_checks, runner, turns
from src.measure.plan import prepare
from src.prefilling import published
from src.records import store as records
from src.records.store import Record

ALL = "methods=[prepacking,full-batching,length-ordered]"
Measure = Callable[..., list[Record]]


def by_method(found: list[Record]) -> dict[str, Record]:
    return {record.row.method: record for record in found}


@pytest.mark.parametrize("protocol", ["paper", "modern"])
@pytest.mark.parametrize("metric", ["prefill", "ttft"])
def test_a_comparison_leaves_one_complete_record_per_method(
    measure: Measure, tmp_path: Path, protocol: str, metric: str
) -> None:
    found = by_method(measure(ALL, f"protocol={protocol}", f"metric={metric}"))
    assert list(found) == ["prepacking", "full-batching", "length-ordered"]
    for method, record in found.items():
        row, folder = record.row, tmp_path / "results" / record.row.run_id
        assert {path.name for path in folder.iterdir()} == {"record.json", "samples.csv", "config.yaml"}
        assert records.read(folder).row == row
        assert (row.status, row.num_prompts, row.num_batches, row.repeats) == ("ok", 12, 3, 2)
        samples = pandas.read_csv(folder / "samples.csv")
        assert len(samples) == 2 * 3
        phases = samples[[name for name in samples if name.endswith("_s")]]
        assert (phases.sum(axis=1) - samples["seconds"]).abs().max() < 1e-9
        # The median: a machine that runs something else between the two readings says nothing of the clock.
        assert (samples["seconds"] - samples["host_seconds"]).abs().median() < 1e-3
        assert samples["seconds"].mean() == pytest.approx(row.seconds_per_batch_mean)
        assert samples["useful_tokens"].sum() == 2 * row.useful_tokens == 2 * sum(record.prompt_lengths)
        assert row.padding_ratio == pytest.approx(samples["computed_tokens"].sum() / samples["useful_tokens"].sum())
        assert row.seconds_per_prompt_mean == pytest.approx(row.seconds_per_batch_mean * 3 / 12)
        assert row.useful_tokens_per_s == pytest.approx(row.useful_tokens / (row.seconds_per_batch_mean * 3))
        assert row.verified_prompts == 8
        assert row.harness_overhead_pct is not None
        assert 0 <= row.harness_overhead_pct < 50
        assert row.verified_max_abs_diff is not None
        assert row.verified_max_abs_diff < 1e-3
        assert row.utilization_source == "process"
        assert row.speedup_over_full_batching is not None
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert (config["metric"], config["dtype"], config["device"]) == (metric, "float32", "cpu")
        assert (row.packing == "ffd") == (method == "prepacking")
    assert len({record.row.workload_fingerprint for record in found.values()}) == 1
    assert len({record.row.comparison_id for record in found.values()}) == 1
    assert found["prepacking"].row.padding_ratio < found["full-batching"].row.padding_ratio
    assert found["full-batching"].row.speedup_over_full_batching == 1


def test_every_method_stands_beside_the_ideal_and_what_it_must_hold(measure: Measure) -> None:
    names = ["full-batching", "length-ordered", "prepacking", "dataset-prepacking", "padding-free"]
    found = by_method(measure(f"methods=[{','.join(names)}]", "ideal=true", "metric=ttft"))
    assert list(found) == names
    for method, record in found.items():
        row = record.row
        assert (row.status, row.forward) == ("ok", "fused")
        assert row.attention is not None
        assert ("right-padded" in row.attention) == (method in {"full-batching", "length-ordered"})
        assert row.fraction_of_ideal is not None
        assert row.fraction_of_ideal > 0
        assert row.must_hold_mb is not None
        # Weights of 2 layers of width 32 and 12 prompts' KV: some tenths of a MB.
        assert 0.05 < row.must_hold_mb < 5
        assert row.useful_tokens == found["full-batching"].row.useful_tokens
        assert sum(sample["useful_tokens"] for sample in record.samples) == 2 * row.useful_tokens
    assert found["padding-free"].row.padding_ratio == 1
    assert found["padding-free"].row.packing is None
    whole = found["dataset-prepacking"]
    assert whole.row.num_batches < found["prepacking"].row.num_batches
    assert all(sample["plan_s"] > 0 for sample in whole.samples)


def test_serving_engines_stand_beside_the_methods_or_say_why_not(
    measure: Measure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_PYTHON", str(tmp_path / "nowhere"))
    found = by_method(measure("methods=[full-batching,continuous-batching,vllm]", "metric=ttft"))
    served, missing = found["continuous-batching"].row, found["vllm"].row
    assert (served.status, served.verified_prompts, served.forward) == ("ok", 8, None)
    assert served.speedup_over_full_batching is not None
    assert (missing.status, missing.seconds_per_batch_mean) == ("skipped", None)
    assert "make vllm-env" in str(missing.status_reason)


def test_methods_take_turns_in_a_seeded_random_order(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[int, str]] = []
    real = turns._timed_pass

    def noted(plan: Any, outcome: Any, timer: Any, bar: Any, place: Any, skip: Any) -> Any:
        order.append((place[0], outcome.method.name))
        return real(plan, outcome, timer, bar, place, skip)

    monkeypatch.setattr(turns, "_timed_pass", noted)
    runs = []
    for _ in range(2):
        runner.measure(prepare(tiny_config(ALL, "repeats=6", "rerun=true")))
        runs.append(list(order))
        order.clear()
    assert runs[0] == runs[1]
    assert [repeat for repeat, _ in runs[0]] == sorted([*range(-1, 6)] * 3)
    first_of_each = {runs[0][i][1] for i in range(0, 21, 3)}
    assert len(first_of_each) > 1


@pytest.mark.parametrize(("precision", "repeats"), [("0.99", 2), ("0.000001", 4)])
def test_repeats_go_on_until_intervals_are_narrow_or_max_repeats(
    measure: Measure, precision: str, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "0.99":  # times of a loaded machine decide nothing here
        monkeypatch.setattr(turns, "precise", lambda *_: True)
    for record in measure(ALL, f"precision={precision}", "max_repeats=4"):
        assert (record.row.status, record.row.repeats) == ("ok", repeats)


def test_what_is_recorded_is_not_measured_again(
    measure: Measure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = measure(ALL)

    def unexpected(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(runner, "load_model", unexpected)
    again = measure(ALL)
    assert [record.row for record in again] == [record.row for record in first]
    assert "already recorded (rerun=true measures again)" in capsys.readouterr().err
    for change in ("seed=1", "num_prompts=11", "repeats=3", "protocol=paper", "rerun=true"):
        with pytest.raises(AssertionError, match="measured again"):
            measure(ALL, change)


def test_a_record_cut_short_is_measured_again(measure: Measure, tmp_path: Path) -> None:
    (record,) = measure()
    path = tmp_path / "results" / record.row.run_id / "record.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    measure()
    assert json.loads(path.read_text(encoding="utf-8"))["row"]["status"] == "ok"


@pytest.mark.parametrize("when", ["timed", "verified"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), "error"),
    ],
)
def test_a_method_that_fails_is_a_row_and_the_others_go_on(
    measure: Measure, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str, when: str
) -> None:
    fail_for("full-batching", error, monkeypatch, when)
    found = by_method(measure(ALL))
    failed = found["full-batching"].row
    assert failed.status == status
    assert str(error)[:40] in str(failed.status_reason)
    assert failed.seconds_per_batch_mean is None
    assert failed.batch_size == 4
    assert found["prepacking"].row.status == "ok"
    assert found["prepacking"].row.speedup_over_full_batching is None


def test_what_is_incorrect_is_never_timed(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_only(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
        return torch.ones(len(segments), 1, segments.shape[1], segments.shape[1], dtype=torch.bool).tril()

    monkeypatch.setattr(published, "independent_mask", causal_only)
    found = by_method(measure(ALL, "protocol=paper"))
    assert found["prepacking"].row.status == "incorrect"
    assert found["prepacking"].row.seconds_per_batch_mean is None
    assert not found["prepacking"].samples
    assert found["full-batching"].row.status == "ok"


def test_a_model_that_does_not_fit_is_a_row_for_each_method(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room for weights")

    monkeypatch.setattr(runner, "load_model", too_large)
    assert {record.row.status for record in measure(ALL)} == {"oom"}


def test_within_a_limit_freed_memory_is_not_kept(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept in pieces too small for the next tensor decided, from run to run, which batch fitted."""
    kept: list[bool] = []
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: kept.append(True))
    measure("isolate=true", "memory_limit_mb=8000")
    assert not kept
    measure()
    assert kept


def test_a_batch_that_is_sure_not_to_fit_is_not_tried_on_a_cpu(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"full-batching": 4.0}
    monkeypatch.setattr(memory_checks, "memory_bytes", lambda _, method, *__: needed.get(method.name, 1.0) * 2**20)
    monkeypatch.setattr("src.measure.process.available_mb", lambda: 3.0)
    found = by_method(measure(ALL))
    assert found["full-batching"].row.status == "oom"
    assert "needs at least 4 MB, 3 MB are available" in str(found["full-batching"].row.status_reason)
    assert found["prepacking"].row.status == "ok"


def test_a_disk_that_fills_up_leaves_the_old_record_and_nothing_half_written(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = measure()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(records.os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            measure("rerun=true")
    assert [path.name for path in (tmp_path / "results").iterdir()] == [first.row.run_id]
    assert records.read(tmp_path / "results" / first.row.run_id).row == first.row


def test_real_text_is_tokenized_within_the_time_under_the_paper_protocol_alone(
    measure: Measure, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"question": "What is the capital of country " + "number " * n}) for n in range(1, 13)]
    path.write_text("\n".join(lines), encoding="utf-8")
    real_text = ["dataset=file", f"dataset.path={path}", "dataset.text_field=question", "dataset.source=file",
                 "model.architecture.vocab_size=32000"]  # fmt: skip
    (modern,) = measure(*real_text)
    (paper,) = measure(*real_text, "protocol=paper")
    assert modern.row.tokenize_s_mean is None
    assert paper.row.tokenize_s_mean is not None
    assert paper.row.tokenize_s_mean > 0
    assert paper.row.tokenizer == "mistral-7b-v0.1 (mistral-common)"
    assert paper.row.dataset_source == "file"
    assert paper.row.workload_fingerprint == modern.row.workload_fingerprint


def test_a_record_names_no_home_folder_no_user_and_no_token(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "home" / "someone"
    private.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(private))
    path = private / "prompts.txt"
    path.write_text("a first prompt\na second prompt\n", encoding="utf-8")
    token = "hf_" + "a1B2" * 8
    fail_for("full-batching", RuntimeError(f"{token} at /home/neighbour/x"), monkeypatch)
    found = measure(ALL, "dataset=file", "dataset.source=file", f"dataset.path={path}", "num_prompts=2", "batch_size=2",
                    "model.architecture.vocab_size=32000", f"results_dir={private / 'results'}")  # fmt: skip
    for record in found:
        for file in (private / "results" / record.row.run_id).iterdir():
            text = file.read_text(encoding="utf-8")
            assert not [word for word in ("someone", "neighbour", token) if word in text], file.name


@pytest.mark.parametrize("loadbit", ["4", "8"])
def test_quantized_weights_are_measured(measure: Measure, loadbit: str) -> None:
    (record,) = measure(
        f"loadbit={loadbit}", "model.architecture.hidden_size=64", "model.architecture.intermediate_size=64"
    )
    assert (record.row.status, record.row.loadbit) == ("ok", loadbit)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
@pytest.mark.parametrize("loadbit", ["none", "4"])
def test_a_gpu_comparison_has_memory_and_telemetry(tmp_path: Path, loadbit: str) -> None:
    config = compose([ALL, "device=cuda", f"loadbit={loadbit}", "metric=ttft", "model=llama-110m", "num_prompts=64",
                         "dataset.source=profile", "batch_size=16", "utilization_loop_s=1",
                         f"results_dir={tmp_path}"])  # fmt: skip
    for record in runner.measure(prepare(config)):
        assert record.row.status == "ok", record.row.status_reason
        assert record.row.dtype == "bfloat16"
        assert record.row.peak_memory_source == "torch allocated"
        assert record.row.utilization_source == "nvml"
        assert record.manifest["gpu_uuid"].startswith("GPU-")
        # Each counter was read, or its gap says why not.
        gaps = str(record.row.telemetry_gaps)
        for column, counter in (("device_memory_used_mb", "device_memory_mb"), ("energy_j", "energy_j"),
                                ("temperature_max_c", "temperature_c"), ("power_mean_w", "power_w"),
                                ("throttle_reasons", "clock_event_reasons"),
                                ("memory_clock_mean_mhz", "memory_clock_mhz"),
                                ("other_gpu_processes", "other_processes")):  # fmt: skip
            known = getattr(record.row, column) is not None
            assert known or counter in gaps or "sampler" in gaps, column
        for sample in record.samples:
            assert sample["seconds"] == pytest.approx(sample["host_seconds"], rel=0.05, abs=5e-4)
