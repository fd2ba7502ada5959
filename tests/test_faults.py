"""Each fault of the authors' measuring code does what its name says, is on record, and stays off unless asked for."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_OVERRIDES, fail_for
from hypothesis import given
from hypothesis import strategies as st

from src import paper
from src.cli import UserError
from src.compose import compose
from src.config import FAULT_NEEDS, FAULTS, Config
from src.jobs import agenda
from src.measure import faults, turns
from src.measure import rows as summary
from src.measure.plan import Plan, prepare
from src.prefilling.method import dataset_bins
from src.prefilling.methods import METHODS
from src.prefilling.models import find_model
from src.prefilling.packing import first_fit_decreasing
from src.prefilling.published import Published
from src.prefilling.shape import Shape
from src.records import groups as aggregate
from src.records import store
from src.records.store import Record
from src.report.build import report_on
from src.report.sections import faults as section
from src.workload.batches import shuffled_batches
from src.workload.profiles import read_profile

ALL = "methods=[prepacking,full-batching,length-ordered]"
# What the experiment sets and a tiny model does without.
AS_TINY = ["scale=cpu", "num_prompts=12", "batch_size=4"]
Measure = Callable[..., list[Record]]
MakeConfig = Callable[..., Config]


def planned(config: MakeConfig, *overrides: str) -> Plan:
    return prepare(config(ALL, *overrides))


def test_none_is_on_by_default_and_reference_is_all() -> None:
    assert Config().faults == []
    everywhere = [name for name in FAULTS if name not in FAULT_NEEDS]
    assert faults.resolve(["reference"], "paper", "ttft") == tuple(everywhere)
    assert faults.resolve(["reference"], "paper", "prefill") == (*everywhere, "keeps-last-batch")
    assert set(FAULTS) - set(faults.resolve(["reference"], "modern", "prefill")) == {"keeps-last-batch"}
    assert faults.resolve(["divide-twice", "no-sync"], "paper", "ttft") == ("no-sync", "divide-twice")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["faults=[left-out-token]", "protocol=paper"], "left-out-token has no effect with protocol=paper"),
        (["faults=[keeps-last-batch]"], "keeps-last-batch has no effect with protocol=modern metric=prefill"),
        (["faults=[keeps-last-batch]", "protocol=paper", "metric=ttft"], "use protocol=paper metric=prefill"),
    ],
)  # fmt: skip
def test_a_fault_where_it_has_no_effect_is_refused(tiny_config: MakeConfig, overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match="faults: ") as caught:
        tiny_config(*overrides)
    assert line in str(caught.value)


def test_a_record_says_what_was_on_and_is_kept_apart(measure: Measure, tmp_path: Path) -> None:
    measure(ALL)
    faulty = measure(ALL, "faults=[reference]")
    assert {record.row.faults for record in faulty} == {" ".join(faults.resolve(["reference"], "modern", "prefill"))}
    assert {record.row.valid for record in faulty} == {False}
    assert "measured with faults" in str(faulty[0].row.invalid_reasons)
    groups = aggregate.comparisons(store.read_all(tmp_path / "results"))
    assert sorted(len({record.row.faults for record in group.shown}) for group in groups) == [1, 1]


def test_the_report_says_what_each_fault_is_worth(measure: Measure, tmp_path: Path) -> None:
    measure(ALL, "repeats=4", "experiment=faults", *AS_TINY)
    clean = [record for group in aggregate.comparisons(store.read_all(tmp_path / "results")) for record in group.shown]
    assert not section.select(clean)
    measure(ALL, "repeats=4", "experiment=faults", *AS_TINY, "faults=[divide-twice]")
    page = report_on(tmp_path / "results").files[0].read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("| divide-twice") and "prepacking" in line]
    per_batch, per_prompt = (float(cell) for cell in line.split("|")[5:7])
    assert per_prompt == pytest.approx(per_batch / 4, abs=0.02)


def test_own_shuffle_makes_other_batches_in_every_repeat_of_every_method_that_does_not_sort(measure: Measure) -> None:
    def tokens(*overrides: str) -> dict[str, list[list[int]]]:
        """By method for each repeat the useful tokens of its batches, which tell batches apart."""
        found = measure(
            "methods=[prepacking,full-batching,length-ordered,dataset-prepacking]", "num_prompts=24", *overrides
        )
        return {
            record.row.method: [
                [each["useful_tokens"] for each in record.samples if each["repeat"] == repeat] for repeat in range(2)
            ]
            for record in found
        }

    clean, faulty = tokens(), tokens("faults=[own-shuffle]")
    assert clean["prepacking"][0] == clean["prepacking"][1] == clean["full-batching"][0]
    runs = [tuple(run) for method in ("prepacking", "full-batching") for run in faulty[method]]
    assert len(set(runs)) == 4
    assert faulty["length-ordered"] == clean["length-ordered"]
    assert {sum(run) for method in faulty.values() for run in method} == {sum(clean["prepacking"][0])}


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), size=st.integers(1, 5), seed=st.integers(0, 2**31)
)
def test_a_reshuffled_packed_dataset_still_holds_every_prompt_once_in_its_bin(
    lengths: list[int], size: int, seed: int
) -> None:
    method = METHODS["dataset-prepacking"]
    batches, bins = dataset_bins(np.array(lengths), size, first_fit_decreasing)

    def together(batches: list[Any], bins: list[Any]) -> list[list[int]]:
        return sorted(sorted(batch[bin_].tolist()) for batch, of in zip(batches, bins, strict=True) for bin_ in of)

    again, places = faults.reshuffled(method, batches, bins, size, (seed,))
    assert places is not None
    assert together(again, places) == together(batches, bins)
    assert all(len(of) <= size for of in places)


def test_left_out_token(measure: Measure) -> None:
    (clean,), (short,) = (measure("method=prepacking", *more) for more in ([], ["faults=[left-out-token]"]))
    assert clean.row.computed_tokens is not None
    assert short.row.computed_tokens is not None
    assert short.row.computed_tokens < clean.row.computed_tokens
    assert short.row.useful_tokens == clean.row.useful_tokens


def test_untimed_packing_is_that_of_the_dataset_and_not_of_a_batch(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    real = turns.dataset_bins
    monkeypatch.setattr(turns, "dataset_bins", lambda *asked: (packed.append(1), real(*asked))[1])
    both = "methods=[prepacking,dataset-prepacking]"
    measure(both)
    assert len(packed) == 2 + 1  # repeats and warm-up
    packed.clear()
    prepacking, _ = measure(both, "faults=[untimed-packing]")
    assert packed == []
    assert prepacking.row.plan_s_mean is not None


def test_keeps_last_batch_holds_logits_and_kv_until_the_next_batch_is_done(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    held: list[Any] = []
    real = Published.prefill

    def noted(self: Published, *asked: Any) -> Any:
        alive.append(sum(each() is not None for each in held))
        done = real(self, *asked)
        if self._options.metric == "prefill":
            assert (done.every_logit is not None) == self._options.keeps_logits
            held.extend(weakref.ref(each) for each in (done.every_logit, done.cache) if each is not None)
        return done

    monkeypatch.setattr(Published, "prefill", noted)
    for fault, most in (("", 0), ("keeps-last-batch", 2)):
        for method in ("prepacking", "full-batching"):
            alive.clear()
            held.clear()
            measure(f"method={method}", "protocol=paper", "repeats=2", f"faults=[{fault}]", "warmup=0")
            assert max(alive) == most
            assert alive.count(most) >= 4  # of three batches in each repeat, all but the first


def test_the_published_memory_is_that_of_two_batches() -> None:
    """Simulated over samples of 1,000 MMLU prompts, as sizes of float16 logits, their float32 copy, and float16 KV."""
    lengths, _ = read_profile("mmlu")
    shape = Shape.of(find_model(compose(["model=llama2-1.3b", "model.weights=random"]).model).config)
    weights = (
        0.56 * shape.layer_parameters + 4 * shape.vocabulary
    )  # 4 bits and their scales; embedding and head in float16
    peaks: dict[tuple[bool, bool], list[float]] = {
        (packs, keeps): [] for packs in (True, False) for keeps in (True, False)
    }
    for seed in range(40):
        sample = np.random.default_rng(seed).choice(lengths, 1000, replace=False)
        for (packs, keeps), found in peaks.items():
            held = most = 0
            for batch in shuffled_batches(1000, 64, seed):
                mine, longest = sample[batch] - packs, int(sample[batch].max())
                rows = len(first_fit_decreasing(mine[mine > 0].tolist(), longest)) if packs else len(batch)
                tokens = rows * int(mine.max())
                most = max(most, held * keeps + tokens * (6 * shape.vocab_size + 2 * shape.kv_width))
                held = tokens * (4 * shape.vocab_size + 2 * shape.kv_width)
            found.append((weights + most) / 2**20)
    published = paper.find("readme_example_table", "max_gpu_memory_mb", method="prepacking")
    assert np.mean(peaks[True, True]) == pytest.approx(published, rel=0.05)
    assert np.mean(peaks[True, False]) < 0.7 * published
    ratios = np.array(peaks[False, True]) / np.array(peaks[True, True])
    assert np.quantile(ratios, [0.05, 0.95]) == pytest.approx(paper.MEMORY_RATIO_SPREAD, rel=0.1)


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


def test_an_experiment_leaves_out_the_fault_that_its_prompts_do_not_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*TINY_OVERRIDES, "protocol=paper", f"results_dir={tmp_path}"]
    runs = {"faults": [[*small, f"faults=[{name}]"] for name in ("divide-twice", "sort-by-characters")]}
    (task,) = agenda.tasks_of(runs, ())
    assert task.plans[0].faults == ("divide-twice",)
    said = "note: faults: left out: faults: sort-by-characters needs prompts with text; use dataset=file"
    assert capsys.readouterr().err.startswith(said)


def test_packing_of_a_whole_dataset_is_charged_where_nothing_synchronizes(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the clock then knows one phase, the last, and none for planning."""
    from src.measure.timer import PhaseTimer

    stop = PhaseTimer.stop
    monkeypatch.setattr(PhaseTimer, "stop", lambda self: {"decode": sum(stop(self).values())})
    (record,) = measure("method=dataset-prepacking", "metric=ttft", "faults=[no-sync]")
    assert record.row.status == "ok"
    assert record.row.plan_s_mean


def test_no_sync_reads_the_clock_while_the_device_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.measure import timer as module

    events: list[str] = []
    monkeypatch.setattr(module.PhaseTimer, "_synchronize", lambda self: events.append("wait"))
    monkeypatch.setattr(module.time, "perf_counter", lambda: events.append("clock") or float(len(events)))
    for synchronizes in (True, False):
        timer = module.PhaseTimer(torch.device("cpu"), synchronizes=synchronizes)
        events.clear()
        timer.start()
        timer.stop()
        assert events.count("wait") == (3 if synchronizes else 0)
        assert events[-1] == "clock"
