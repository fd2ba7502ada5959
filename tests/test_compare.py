"""Comparing machines and versions: what is matched and what is not, ratios, verdicts, exit codes, bad input."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src import stats
from src.compare import __main__ as compare
from src.compare import pairs
from src.compare.sources import read_source
from src.records import groups as aggregate
from src.records import store
from src.records.row import Row
from src.records.store import Record, write

Call = Callable[..., tuple[int, str, str]]
METHODS = ("full-batching", "prepacking", "length-ordered")


def record(method: str, scale: float, settings: dict[str, Any], noise: int = 0, **changes: Any) -> Record:
    """Three repeats over six batches, 1 % of noise (``noise`` is its seed) in each sample, times ``scale``."""
    rng = np.random.default_rng((METHODS.index(method), noise))
    seconds = scale * np.linspace(1, 2, 6) * rng.normal(1, 0.01, (3, 6))
    mean = stats.mean_interval(seconds, batches_are_draws=method != "length-ordered")
    row = Row(
        run_id=f"{method}-{changes}"[:80].replace("/", ""), comparison_id="tiny", method=method, dataset="mmlu",
        dataset_source="profile", dataset_detail="profile mmlu", model="tiny", model_detail="random, shape tiny",
        weights_source="random", metric="ttft", protocol="modern", packing="ffd" if method == "prepacking" else None,
        model_hash="aaaa", max_tokens_per_forward=2, torch_threads=2,
        forward="fused", batch_size=4, num_prompts=24, num_batches=6, repeats=3, device_name="a CPU, 2 cores",
        dtype="float32", loadbit="none", created_at="2026-01-01T00:00:00+00:00", workload_fingerprint="abcdef",
        seconds_per_batch_mean=mean.value, seconds_per_batch_ci_low=mean.low, seconds_per_batch_ci_high=mean.high,
        speedup_over_full_batching=None if method == "full-batching" else 1.0, valid=True,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(row, name, value)
    samples = [{"repeat": r, "batch": b, "seconds": seconds[r, b]} for r in range(3) for b in range(6)]
    made = {"packages": {"torch": "2.99.0"}, "git_commit": "0123456789abcdef", "git_dirty": False}
    return Record(row, made, settings, samples, [5] * 24)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Path]:
    """Write a machine's records of all methods, or of one with something changed."""

    def make(name: str, scale: float = 1.0, only: str | None = None, settings: Any = None, **changes: Any) -> Path:
        for method in METHODS if only is None else [only]:
            write(record(method, scale, settings or {}, **changes), tmp_path / name)
        return tmp_path / name

    return make


def found(*folders: Path) -> pairs.Matching:
    return pairs.compare([read_source("ABC"[place], str(folder)) for place, folder in enumerate(folders)])


def reasons(comparison: pairs.Matching) -> set[tuple[str, str, str]]:
    return {(each.source.letter, each.measurement.row.method, each.reason) for each in comparison.unmatched}


@given(st.integers(1, 4), st.integers(1, 6), st.booleans(), st.floats(0.1, 10))
def test_a_run_against_itself_is_1_and_never_a_regression(repeats: int, batches: int, same: bool, scale: float) -> None:
    seconds = np.random.default_rng(repeats * 10 + batches).uniform(1, 2, (repeats, batches))
    itself = stats.between_runs(seconds, seconds, same, 499)
    assert itself.value == 1
    assert itself.verdict() == "inconclusive"
    scaled = stats.between_runs(seconds, scale * seconds, same, 499)
    assert scaled.value == pytest.approx(1 / scale)
    if repeats > 1:
        assert scaled.low == pytest.approx(itself.low / scale)
        assert scaled.high == pytest.approx(itself.high / scale)
    else:
        assert np.isnan(scaled.low)


def test_real_records_against_a_copy_of_themselves_are_all_inconclusive_at_1(
    measure: Callable[..., list[Record]], tmp_path: Path, call: Call
) -> None:
    measure("methods=[prepacking,full-batching]")
    shutil.copytree(tmp_path / "results", tmp_path / "copy")
    comparison = found(tmp_path / "results", tmp_path / "copy")
    assert len(comparison.pairs) == 2
    assert not comparison.unmatched
    for pair in comparison.pairs:
        assert pair.paired
        assert pair.ratio
        assert pair.ratio.value == 1
        assert pair.row.method == "full-batching" or (pair.change and pair.change.value == pytest.approx(1))
    folders = str(tmp_path / "results"), str(tmp_path / "copy")
    code, out, _ = call(compare.main, *folders, "--fail-on-regression", "0%", "--noise-floor=0")
    assert (code, out.count("inconclusive |")) == (0, 2)
    assert "no regression beyond 0 %" in out


def test_a_machine_that_takes_1_2_times_as_long_is_that_much_slower(machine: Callable[..., Path], call: Call) -> None:
    a, b = machine("a"), machine("b", 1.2, device_name="another CPU")
    comparison = found(a, b)
    assert [pair.ratio.value if pair.ratio else 0 for pair in comparison.pairs] == pytest.approx([1 / 1.2] * 3)
    code, out, _ = call(compare.main, str(a), str(b), "--fail-on-regression", "5%")
    assert code == 1
    assert out.count("regression beyond 5 %: B, ") == 3
    assert "1.20x [1." in out
    assert out.count("slower |") == 3
    for margin in ("25%", "0.25"):
        assert call(compare.main, str(a), str(b), "--fail-on-regression", margin)[0] == 0
    assert call(compare.main, str(a), str(b))[0] == 0
    code, out, _ = call(compare.main, str(b), str(a), "fail_on_regression=5%")
    assert (code, out.count("faster |")) == (0, 3)


def test_an_interval_that_reaches_into_the_margin_is_no_regression(machine: Callable[..., Path]) -> None:
    for pair in found(machine("a"), machine("b", 2.0, noise=1)).pairs:
        assert pair.ratio
        nearest, itself = 1 / pair.ratio.high - 1, 1 / pair.ratio.value - 1
        assert 0 < nearest < itself
        assert pair.slower_by(nearest - 1e-6)
        assert not pair.slower_by((nearest + itself) / 2), "the ratio is beyond it, its interval not wholly"


@pytest.mark.parametrize(("scale", "code"), [(12.0, 1), (1.0, 0), (1.04, 0)])
def test_a_slowdown_without_an_interval_does_not_pass_the_gate(
    tmp_path: Path, call: Call, scale: float, code: int
) -> None:
    """One batch measured once has no interval: a slowdown of 12 times was no regression."""
    for name, seconds in (("a", 1.0), ("b", scale)):
        made = record("prepacking", 1.0, {}, repeats=1, num_batches=1, seconds_per_batch_mean=seconds,
                      seconds_per_batch_ci_low=None, seconds_per_batch_ci_high=None)  # fmt: skip
        made.samples = [{"repeat": 0, "batch": 0, "seconds": seconds}]
        write(made, tmp_path / name)
    found_code, out, _ = call(compare.main, str(tmp_path / "a"), str(tmp_path / "b"), "--fail-on-regression=5%")
    assert found_code == code
    if code:
        assert "12.00x (no interval) ‡ the time, judged by itself" in out
    else:
        assert "no regression beyond 5 % (1 of 1 ratios have no interval and were judged by themselves)" in out


def test_the_verdict_comes_first_and_what_has_no_counterpart_is_folded(
    machine: Callable[..., Path], call: Call
) -> None:
    a, b = machine("a"), machine("b", 2.0, noise=1)
    for size in range(5, 25):
        machine("a", only="prepacking", batch_size=size, workload_fingerprint=f"other {size}")
    _, out, _ = call(compare.main, str(a), str(b))
    lines = out.splitlines()[2:5]
    assert lines[0] == f"- B ({b}) against A: 3 measurements compared: 0 faster, 3 slower, 0 inconclusive"
    assert lines[1].startswith("- A's time over B's: 0.5")
    assert lines[2] == "- without a counterpart: 20 of A's; most of all for: batch_size (20)"
    folded = out[out.index("## Not compared") :]
    assert len([line for line in folded.splitlines() if line.startswith("| A ")]) == 1
    assert re.search(r"\| +20 \|", folded)


def test_every_source_is_compared_with_the_first(machine: Callable[..., Path], call: Call) -> None:
    folders = machine("a"), machine("b", 2.0, device_name="slow"), machine("c", 0.5, device_name="quick")
    _, out, _ = call(compare.main, *map(str, folders))
    assert [len(re.findall(rf"\| +{verdict} \|", out)) for verdict in ("slower", "faster")] == [3, 3]
    for told in ("a CPU, 2 cores", "slow", "quick", "2.99.0", "0123456789ab", "2026-01-01"):
        assert told in out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_size": 8, "workload_fingerprint": "other"}, "batch_size: 4 here, 8 there"),
        ({"num_prompts": 48, "workload_fingerprint": "other"}, "num_prompts: 24 here, 48 there"),
        ({"dataset": "alpaca", "workload_fingerprint": "other"}, "dataset: mmlu here, alpaca there"),
        ({"seed": 1, "workload_fingerprint": "other"}, "seed: 0 here, 1 there"),
        ({"workload_fingerprint": "other"}, "workload_fingerprint: abcdef here, other there"),
        ({"dtype": "bfloat16"}, "dtype differs: float32, bfloat16 (set dtype on both)"),
        (
            {"weights_source": "hub", "model_detail": "org/tiny@1", "model_hash": "bbbb"},
            "weights_source differs: random, hub (set model.weights on both)",
        ),
        (
            {"dataset_source": "hub", "workload_fingerprint": "other"},
            "dataset_source differs: profile, hub (set dataset.source on both)",
        ),
        ({"model": "small", "model_hash": "bbbb"}, "model: tiny here, small there"),
        ({"model_hash": "bbbb"}, "model_hash: aaaa here, bbbb there"),
        ({"loadbit": "8"}, "loadbit: none here, 8 there"),
        ({"forward": "transformers"}, "forward: fused here, transformers there"),
        ({"packing": "optimal"}, "packing: ffd here, optimal there"),
        ({"faults": "no-sync"}, "faults: none here, no-sync there"),
        ({"metric": "prefill"}, "metric: ttft here, prefill there"),
        ({"protocol": "paper"}, "protocol: modern here, paper there"),
        ({"max_tokens_per_forward": 1}, "max_tokens_per_forward: 2 here, 1 there"),
        ({"max_tokens_per_forward": None}, "max_tokens_per_forward: 2 here, none there"),
        ({"memory_limit_mb": 500}, "memory_limit_mb: none here, 500 there"),
    ],
    ids=str,
)  # fmt: skip
def test_what_differs_is_not_compared_and_the_reason_is_said(
    machine: Callable[..., Path], changes: dict[str, Any], reason: str
) -> None:
    comparison = found(machine("a", only="prepacking"), machine("b", only="prepacking", **changes))
    assert not comparison.pairs
    assert len(comparison.unmatched) == 2
    assert ("A", "prepacking", reason) in reasons(comparison)


def test_a_model_is_the_same_whatever_its_folder_is_called(machine: Callable[..., Path]) -> None:
    other = {"model": "final", "model_detail": "folder final sha256:aaaa"}
    assert len(found(machine("a"), machine("b", **other)).pairs) == 3


def test_an_older_file_is_matched_by_what_it_knows(machine: Callable[..., Path], tmp_path: Path) -> None:
    a = machine("a")
    table = aggregate.summary(aggregate.comparisons(store.read_all(machine("b"))))
    for older in (["model_hash"], ["model_hash", "max_tokens_per_forward", "torch_threads", "memory_limit_mb"]):
        sent = tmp_path / f"{len(older)}.csv"
        table.drop(columns=older).to_csv(sent, index=False)
        assert len(found(a, sent).pairs) == 3
        other = table.assign(model_detail="random, shape another").drop(columns=older)
        other.to_csv(sent, index=False)
        assert not found(a, sent).pairs


def test_the_reason_is_that_of_the_nearest(machine: Callable[..., Path]) -> None:
    a = machine("a", only="prepacking")
    machine("b", only="prepacking", metric="prefill", protocol="paper", batch_size=8, workload_fingerprint="x")
    b = machine("b", only="prepacking", dtype="float16")
    machine("b", only="full-batching")
    found_reasons = reasons(found(a, b))
    assert ("A", "prepacking", "dtype differs: float32, float16 (set dtype on both)") in found_reasons
    assert ("B", "full-batching", "not measured there") in found_reasons


def test_under_paper_a_record_that_names_no_forward_is_one_of_the_models_own(machine: Callable[..., Path]) -> None:
    a = machine("a", protocol="paper", forward=None)
    assert len(found(a, machine("b", protocol="paper", forward="transformers")).pairs) == 3


def test_what_failed_is_listed_and_a_method_that_fails_now_is_a_regression(
    machine: Callable[..., Path], call: Call, tmp_path: Path
) -> None:
    a, b = machine("a"), machine("b")
    failed = {"status": "oom", "status_reason": "no room", "seconds_per_batch_mean": None}
    write(record("prepacking", 1, {}, **failed), tmp_path / "c")
    machine("c", only="full-batching")
    code, out, _ = call(
        compare.main, str(a), str(tmp_path / "c"), "--fail-on-regression=5%", f"out_dir={tmp_path / 'o'}"
    )
    assert code == 1
    assert "B, prepacking: oom, no room" in out
    assert "regression beyond 5 %: B, prepacking, TTFT, modern protocol" in out
    table = pandas.read_csv(tmp_path / "o" / "comparison.csv")
    assert set(table["source_status"].dropna()) == {"ok", "oom"}
    assert "<!-- oom -->" in (tmp_path / "o" / "comparison.svg").read_text(encoding="utf-8")
    code, _, _ = call(compare.main, str(tmp_path / "c"), str(b), "--fail-on-regression=5%")
    assert code == 0, "a failure that is gone is none"


@pytest.mark.parametrize(("status", "code"), [("gated", 0), ("skipped", 0), ("timeout", 1), ("incorrect", 1)])
def test_a_method_that_failed_before_its_model_was_read_is_matched_by_what_it_knows(
    machine: Callable[..., Path], call: Call, status: str, code: int
) -> None:
    early = {
        "status": status, "status_reason": "no licence", "seconds_per_batch_mean": None, "workload_fingerprint": "",
        "model_detail": "", "model_hash": None, "max_tokens_per_forward": None,
        "weights_source": "", "dataset_source": "", "dtype": "", "packing": None, "forward": None,
    }  # fmt: skip
    a, b = machine("a"), machine("b", only="prepacking", **early)
    machine("b", only="full-batching")
    comparison = found(a, b)
    assert [pair.row.method for pair in comparison.pairs] == ["prepacking", "full-batching"]
    assert call(compare.main, str(a), str(b), "--fail-on-regression=5%")[0] == code


def test_invalid_measurements_are_compared_and_marked(machine: Callable[..., Path], call: Call) -> None:
    a, b = machine("a"), machine("b", valid=False, invalid_reasons="the GPU was throttled")
    _, out, _ = call(compare.main, str(a), str(b))
    assert out.count("inconclusive |") == 3
    assert "3 inconclusive, 3 of them INVALID on a side" in out
    assert "! INVALID: B, prepacking: the GPU was throttled" in out
    assert "INVALID: A" not in out
    slow = machine("slow", 2.0, valid=False, invalid_reasons="the GPU was throttled")
    code, out, _ = call(compare.main, str(a), str(slow), "--fail-on-regression=5%")
    assert code == 1
    assert out.count("the time, INVALID: not to be relied upon") == 3


def test_a_method_that_reorders_and_ran_by_itself_is_compared_by_whole_passes(tmp_path: Path) -> None:
    """Its batches are not full-batching's, however many there are."""
    unknown = {"speedup_over_full_batching": None}
    write(record("full-batching", 1.0, {}), tmp_path / "a")
    alone = record("length-ordered", 0.5, {}, comparison_id="alone", run_id="alone", **unknown)
    for sample in alone.samples:  # the same times in another order, as sorted prompts have them
        sample["batch"] = 5 - sample["batch"]
    write(alone, tmp_path / "a")
    whole = record("length-ordered", 0.125, {}, comparison_id="whole", run_id="whole", num_batches=12, **unknown)
    whole.row.method, whole.row.packing = "dataset-prepacking", "ffd"
    whole.samples += [{**sample, "batch": sample["batch"] + 6} for sample in whole.samples]
    write(whole, tmp_path / "a")
    speedups = {pair.row.method: pair.speedups[0] for pair in found(tmp_path / "a", tmp_path / "a").pairs}
    ordered, packed = speedups["length-ordered"], speedups["dataset-prepacking"]
    assert ordered is not None
    assert packed is not None
    assert (ordered.value, packed.value) == pytest.approx((2, 4), rel=0.02)
    assert 1.9 < ordered.low < ordered.high < 2.1
    assert (ordered.few, packed.few) == (True, True), "three repeats are draws, six batches are not"
    sent = tmp_path / "sent.csv"
    whole.row.seconds_per_prompt_mean = 1.0
    base = record("full-batching", 1.0, {}, seconds_per_prompt_mean=4.0)
    aggregate.summary([aggregate.Comparison([base, whole], [])]).to_csv(sent, index=False)
    (of_csv,) = (pair.speedups[0] for pair in found(sent, sent).pairs if pair.row.method == "dataset-prepacking")
    assert of_csv is not None
    assert of_csv.value == 4, "by the prompt, for batches of bins are not batches of prompts"


def test_the_newest_of_several_stands_and_it_is_said(machine: Callable[..., Path], call: Call) -> None:
    a, b = machine("a"), machine("b", 3.0)
    machine("b/newer", 1.0, created_at="2026-02-01T00:00:00+00:00", config_hash="other")
    _, out, _ = call(compare.main, str(a), str(b))
    assert "B holds several measurements of a kind: the newest stand, 3 older ones do not" in out
    assert out.count("inconclusive |") == 3


def test_how_the_speedup_differs_comes_from_the_samples_of_both(machine: Callable[..., Path]) -> None:
    a, b = machine("a", only="full-batching"), machine("b", 3.0, only="full-batching", noise=1)
    for folder, scale, noise in ((a, 1.0, 2), (b, 1.5, 3)):
        write(record("prepacking", scale, {}, noise), folder)
    pair = next(pair for pair in found(a, b).pairs if pair.row.method == "prepacking")
    assert pair.change is not None
    assert pair.change.value == pytest.approx(2, rel=0.02)
    assert 1.9 < pair.change.low < pair.change.value < pair.change.high < 2.1


def test_a_summary_csv_is_compared_by_the_intervals_of_its_means(
    machine: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    a, b = machine("a"), machine("b", 1.2, noise=1, device_name="another CPU")
    sent = tmp_path / "sent.csv"
    aggregate.summary(aggregate.comparisons(store.read_all(b))).to_csv(sent, index=False, encoding="utf-8-sig")
    comparison, whole = found(a, sent), found(a, b)
    assert len(comparison.pairs) == 3
    for of_means, of_samples in zip(comparison.pairs, whole.pairs, strict=True):
        assert of_means.ratio
        assert of_samples.ratio
        assert not of_means.paired
        assert of_means.ratio.value == pytest.approx(of_samples.ratio.value)
        if of_means.row.method != "length-ordered":  # whose means are over repeats alone
            assert of_means.ratio.low < of_samples.ratio.low < of_samples.ratio.high < of_means.ratio.high
    _, out, _ = call(compare.main, str(a), str(sent))
    assert "B is a summary.csv, which tells neither samples nor versions" in out
    assert "wider than it need be" in out


def test_samples_that_are_gone_or_cut_short_leave_the_means(machine: Callable[..., Path]) -> None:
    a, b = machine("a"), machine("b", 1.2)
    samples = sorted(b.glob("*/samples.csv"))
    samples[0].unlink()
    samples[1].write_text(samples[1].read_text(encoding="utf-8")[:-40], encoding="utf-8")
    samples[2].write_text("", encoding="utf-8")
    for pair in found(a, b).pairs:
        assert pair.ratio
        assert (pair.paired, pair.ratio.value) == (False, pytest.approx(1 / 1.2))


def test_nothing_is_written_unless_asked_and_then_a_table_and_a_legible_plot(
    machine: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    a, b = machine("a"), machine("b", 2.0)
    before = set(tmp_path.rglob("*"))
    _, out, _ = call(compare.main, str(a), str(b))
    assert set(tmp_path.rglob("*")) == before
    assert "Nothing was written; --out DIR" in out
    call(compare.main, str(a), "--out", str(tmp_path / "o" / "p"), str(b))
    files = {path.name for path in (tmp_path / "o" / "p").iterdir()}
    assert files == {"comparison.md", "comparison.csv", "comparison.png", "comparison.svg"}
    table = pandas.read_csv(tmp_path / "o" / "p" / "comparison.csv")
    assert table["ratio"].tolist() == pytest.approx([0.5] * 3, rel=1e-6)
    assert set(table["verdict"]) == {"slower"}
    with Image.open(tmp_path / "o" / "p" / "comparison.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_where_nothing_can_be_compared_a_check_for_regressions_does_not_pass(
    machine: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    a, b = machine("a"), machine("b", dtype="float16")
    code, out, _ = call(compare.main, str(a), str(b), "--out", str(tmp_path / "o"))
    assert code == 0
    assert "- B (" in out
    assert "against A: nothing could be compared" in out
    assert (tmp_path / "o" / "comparison.png").is_file()
    code, _, err = call(compare.main, str(a), str(b), "--fail-on-regression", "5%")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "nothing of B" in err


BAD_INPUT = [
    ("src.compare", "sources: none given; name the reference, then one or more to compare with it"),
    ("src.compare {tmp}/a", "sources: 1 given"),
    ("src.compare {tmp}/a {tmp}/absent", "{tmp}/absent: there is no such folder or file"),
    ("src.compare {tmp}/a {tmp}/none", "{tmp}/none: no readable record below it"),
    ("src.compare {tmp}/a {tmp}/a/../a", "{tmp}/a/../a: is named twice"),
    ("src.compare {tmp}/a {tmp}/both", "{tmp}/both: holds the same measurement of a CPU and another CPU"),
    ("src.compare {tmp}/a {tmp}/notes.txt", "{tmp}/notes.txt: neither a folder nor a .csv"),
    ("src.compare {tmp}/a {tmp}/empty.csv", "{tmp}/empty.csv: is empty"),
    ("src.compare {tmp}/a {tmp}/header.csv", "{tmp}/header.csv: has a header and no rows"),
    ("src.compare {tmp}/a {tmp}/columns.csv", "{tmp}/columns.csv: has no column 'status' (nor"),
    ("src.compare {tmp}/a {tmp}/cut.csv", "{tmp}/cut.csv: line 4 has fewer cells than the header"),
    ("src.compare {tmp}/a {tmp}/value.csv", "{tmp}/value.csv: line 2: batch_size is 'many'"),
    ("src.compare {tmp}/a {tmp}/state.csv", "{tmp}/state.csv: line 2: status is 'fine', not one of ok, oom"),
    ("src.compare {tmp}/a {tmp}/bytes.csv", "{tmp}/bytes.csv: cannot be read as CSV"),
    ("src.compare {tmp}/a {tmp}/b --fail-on-regression", "--fail-on-regression: expected one argument"),
    ("src.compare {tmp}/a {tmp}/b --fail-on-regression 5", "--fail-on-regression: '5'; give a percentage from 0% to"),
    ("src.compare {tmp}/a {tmp}/b --fail-on-regression=-5%", "--fail-on-regression: '-5%'; give a percentage"),
    ("src.compare {tmp}/a {tmp}/b noise_floor=much", "--noise-floor: 'much'; give a percentage"),
    ("src.compare {tmp}/a {tmp}/b noisefloor=1%", "noisefloor: there is no such setting; choose one of out_dir"),
    ("src.compare {tmp}/a {tmp}/b --fail 5%", "--fail: there is no such option"),
    ("src.compare {tmp}/a {tmp}/b --out=", "--out: is empty"),
    ("src.compare {tmp}/a {tmp}/b --out {tmp}/notes.txt", "out_dir: cannot write '{tmp}/notes.txt'"),
]


@pytest.fixture(scope="module")
def bad_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, device in (("a", "a CPU"), ("b", "a CPU"), ("both/1", "a CPU"), ("both/2", "another CPU")):
        for method in METHODS:
            write(record(method, 1, {}, device_name=device), folder / name)
    (folder / "none").mkdir()
    text = aggregate.summary(aggregate.comparisons(store.read_all(folder / "b"))).to_csv(index=False)
    for name, content in {
        "notes.txt": "hello",
        "empty.csv": "",
        "header.csv": text.splitlines()[0] + "\n",
        "columns.csv": "method,seconds\nprepacking,1\n",
        "cut.csv": text[: len(text) - 60],
        "value.csv": text.replace(",4,24,6,", ",many,24,6,"),
        "state.csv": text.replace(",ok,", ",fine,"),
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "bytes.csv").write_bytes(b"method,\xff\xfe\x00\n")
    return folder


@pytest.mark.parametrize(("typed", "expected"), BAD_INPUT, ids=[typed for typed, _ in BAD_INPUT])
def test_bad_input_of_a_comparison_ends_in_one_line(typed: str, expected: str, bad_sources: Path, call: Call) -> None:
    tmp_path = bad_sources
    before = set(tmp_path.rglob("*"))
    code, out, err = call(compare.main, *typed.format(tmp=tmp_path).split(" ")[1:])
    shown = err.strip().splitlines()
    assert code == 2, err
    assert len(shown) == 1, err
    assert shown[0].startswith("error: ")
    assert expected.format(tmp=tmp_path) in shown[0]
    assert "Traceback" not in out + err
    assert set(tmp_path.rglob("*")) == before


def test_help_of_a_comparison_comes_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "src.compare", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "--fail-on-regression" in done.stdout
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert not {"torch", "pandas", "scipy", "matplotlib"} & modules
