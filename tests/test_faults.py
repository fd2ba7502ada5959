"""Each fault of the authors' measuring code does what its name says, is on record, and stays off unless asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import fail_for

from src.config import FAULTS, Config
from src.measure import faults
from src.measure import rows as summary
from src.measure.plan import Plan, prepare
from src.records import groups as aggregate
from src.records import store
from src.records.store import Record
from src.report.build import build
from src.report.sections import faults as section

ALL = "methods=[prepacking,full-batching,length-ordered]"
# What the experiment sets and a tiny model does without.
AS_TINY = ["scale=cpu", "num_prompts=12", "batch_size=4"]
Measure = Callable[..., list[Record]]
MakeConfig = Callable[..., Config]


def planned(config: MakeConfig, *overrides: str) -> Plan:
    return prepare(config(ALL, *overrides))


def test_none_is_on_by_default_and_reference_is_all() -> None:
    assert Config().faults == []
    assert faults.resolve(["reference"]) == tuple(FAULTS)
    assert faults.resolve(["divide-twice", "no-sync"]) == ("no-sync", "divide-twice")


def test_a_record_says_what_was_on_and_is_kept_apart(measure: Measure, tmp_path: Path) -> None:
    measure(ALL)
    faulty = measure(ALL, "faults=[reference]")
    assert {record.row.faults for record in faulty} == {" ".join(FAULTS)}
    assert {record.row.valid for record in faulty} == {False}
    assert "measured with faults" in str(faulty[0].row.invalid_reasons)
    groups = aggregate.comparisons(store.read_all(tmp_path / "results"))
    assert sorted(len({record.row.faults for record in group.shown}) for group in groups) == [1, 1]


def test_the_report_says_what_each_fault_is_worth(measure: Measure, tmp_path: Path) -> None:
    measure(ALL, "repeats=4", "experiment=faults", *AS_TINY)
    clean = [record for group in aggregate.comparisons(store.read_all(tmp_path / "results")) for record in group.shown]
    assert not section.select(clean)
    measure(ALL, "repeats=4", "experiment=faults", *AS_TINY, "faults=[divide-twice]")
    page = build(tmp_path / "results")[0].read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("| divide-twice") and "prepacking" in line]
    per_batch, per_prompt = (float(cell) for cell in line.split("|")[5:7])
    assert per_prompt == pytest.approx(per_batch / 4, abs=0.02)


def test_own_shuffle(tiny_config: MakeConfig) -> None:
    def batches(*overrides: str) -> list[list[list[int]]]:
        assignments = planned(tiny_config, *overrides).methods[:2]
        return [[batch.tolist() for batch in each.batches] for each in assignments]

    prepacking, full = batches()
    assert prepacking == full
    prepacking, full = batches("faults=[own-shuffle]")
    assert prepacking != full


def test_left_out_token_and_untimed_packing(measure: Measure) -> None:
    def prepacking(*overrides: str) -> Record:
        return measure("method=prepacking", *overrides)[0]

    clean, short, untimed = prepacking(), prepacking("faults=[left-out-token]"), prepacking("faults=[untimed-packing]")
    assert clean.row.computed_tokens is not None
    assert short.row.computed_tokens is not None
    assert short.row.computed_tokens < clean.row.computed_tokens
    assert short.row.useful_tokens == clean.row.useful_tokens
    assert clean.row.plan_s_mean is not None
    assert untimed.row.plan_s_mean is None
    assert {sample["plan_s"] for sample in untimed.samples} == {None}


def test_divide_twice(measure: Measure) -> None:
    (clean,), (faulty,) = measure("repeats=4"), measure("repeats=4", "faults=[divide-twice]")
    for record, divisor in ((clean, 1), (faulty, 4)):
        total = sum(sample["seconds"] for sample in record.samples) / 4
        assert record.row.seconds_per_prompt_mean == pytest.approx(total / 12 / divisor)


def test_last_run_only(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = summary.add_memory
    monkeypatch.setattr(summary, "add_memory", lambda row, passes: (seen.append(len(passes)), real(row, passes)))
    measure("repeats=3")
    measure("repeats=3", "faults=[last-run-only]")
    assert seen == [3, 1]


def test_no_failure_rows(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_for("full-batching", torch.OutOfMemoryError("no room"), monkeypatch)
    measure(ALL, "faults=[no-failure-rows]")
    assert sorted(path.name.split("-mmlu")[0] for path in (tmp_path / "results").iterdir()) == [
        "length-ordered",
        "prepacking",
    ]


def test_sort_by_characters(tiny_config: MakeConfig, tmp_path: Path) -> None:
    # Few characters, many tokens against many characters, few tokens.
    texts = ["\u4f60\u597d \u4e16\u754c \u6570\u636e"] * 6 + ["international representatives communicate"] * 6
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    overrides = ["dataset=file", "dataset.source=file", f"dataset.path={path}", "model.architecture.vocab_size=32000"]
    first = {}
    for name in ("", "sort-by-characters"):
        plan = planned(tiny_config, *overrides, f"faults=[{name}]")
        assert plan.prompts.texts is not None
        first[name] = plan.prompts.texts[plan.methods[2].batches[0][0]]
    assert first == {"": texts[-1], "sort-by-characters": texts[0]}


def test_no_sync_reads_the_clock_while_the_device_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.measure import timer as module

    events: list[str] = []
    monkeypatch.setattr(module.PhaseTimer, "_synchronize", lambda self: events.append("wait"))
    monkeypatch.setattr(module.time, "perf_counter", lambda: events.append("clock") or float(len(events)))
    for synchronizes in (True, False):
        timer = module.PhaseTimer(torch.device("cpu"), synchronizes=synchronizes)
        timer.start()
        events.clear()
        timer.stop()
        assert events == (["wait", "clock"] if synchronizes else ["clock"])
