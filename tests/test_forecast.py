"""Estimates learn from what was measured; within given minutes what tells most comes first, and nothing runs over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_OVERRIDES, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from src import reproduce
from src.cli import UserError
from src.compose import compose
from src.config import Config, config_hash
from src.jobs import agenda, apart, duration, largest_batch, trying
from src.jobs.experiments import experiments, priority_of
from src.jobs.forecast import FILE, Clock, Forecast, Taken, corrected
from src.measure.plan import Plan, prepare
from src.prefilling.attention import segments
from src.records import store as records

Call = Callable[..., tuple[int, str, str]]
PARTS = st.floats(0.5, 100)


@given(fixed_s=PARTS, forward_s=PARTS, off=st.floats(0.2, 20), number=st.integers(1, 30))
def test_an_estimate_comes_near_what_others_of_its_kind_took(
    fixed_s: float, forward_s: float, off: float, number: int
) -> None:
    assert corrected(fixed_s, forward_s, "a", []) == pytest.approx(fixed_s + forward_s)
    taken = (fixed_s + forward_s) * off
    before = [Taken(str(place), "a", fixed_s, forward_s, taken, True) for place in range(number)]
    found = corrected(fixed_s, forward_s, "a", before)
    assert found == pytest.approx(taken, rel=0.15)
    # It lies between the estimate and what was seen, and so does that of a kind that was not seen yet, less near.
    assert min(1, off) <= (found / (fixed_s + forward_s)) * (1 + 1e-9) <= max(1, off) * (1 + 1e-6)
    strange = corrected(fixed_s, forward_s, "b", before[:1])
    rounding = 1e-12 * taken
    assert abs(strange - taken) + rounding >= abs(corrected(fixed_s, forward_s, "a", before[:1]) - taken) * (1 - 1e-9)
    assert corrected(fixed_s, forward_s, "a", [replace(each, finished=False) for each in before]) == pytest.approx(
        fixed_s + forward_s
    )


def test_what_comes_on_top_is_corrected_apart_from_what_is_computed() -> None:
    """Start-up takes 5 s where 1 was estimated, computing as long as estimated."""
    before = [Taken(str(s), "a", 1.0, s, 5.0 + s, True) for s in (1.0, 10.0, 100.0)]
    assert corrected(1.0, 1000.0, "a", before) == pytest.approx(1005, rel=0.05)
    assert corrected(1.0, 0.5, "a", before) == pytest.approx(5.5, rel=0.2)


def test_times_are_kept_and_what_was_broken_off_is_not_underestimated_again(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    plan = prepare(tiny_config())
    forecast = Forecast(tmp_path)
    first = forecast.seconds(plan)
    assert not (tmp_path / FILE).exists()  # an estimate alone leaves nothing behind
    forecast.took(plan, 10 * first, finished=False)
    assert forecast.seconds(plan) >= 10 * first
    forecast.report_took(7.5)
    again = Forecast(tmp_path)
    assert (again.seconds(plan), again.report_s) == (pytest.approx(forecast.seconds(plan)), 7.5)
    other = prepare(tiny_config("batch_size=3"))
    assert again.seconds(other) < 5 * first


TAKEN = '{"rates": {}, "taken": [%s], "report_s": null}'


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        TAKEN % '{"kind": "a"}',
        '{"rates": {"some GPU": 0}, "taken": [], "report_s": null}',
        TAKEN % json.dumps({**vars(Taken("a", "b", 1.0, 1.0, 1.0, True)), "fixed_s": 0, "forward_s": 0}),
        TAKEN % json.dumps({**vars(Taken("a", "b", 1.0, 1.0, 1.0, True)), "seconds": "long"}),
        TAKEN % json.dumps({**vars(Taken("a", "b", 1.0, 1.0, 1.0, True)), "seconds": float("nan")}),
    ],
)
def test_a_file_of_times_that_cannot_be_read_begins_anew(
    content: str, tmp_path: Path, tiny_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    forecast = Forecast(tmp_path)
    assert "times.json: estimates begin anew (" in capsys.readouterr().err
    forecast.took(prepare(tiny_config()), 3.0)
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["taken"][0]["seconds"] == 3.0


def test_an_estimate_grows_with_what_is_asked_for(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duration.driver, "installed", lambda: False)

    def parts(*overrides: str) -> duration.Parts:
        return duration.parts_of(prepare(tiny_config("methods=[full-batching,prepacking]", *overrides)))

    plain = parts()
    twice = duration.parts_of(prepare(tiny_config("methods=[full-batching,prepacking]")), times=2)
    assert twice.operations == 2 * plain.operations
    assert plain.fixed_s < twice.fixed_s < 2 * plain.fixed_s  # more prompts are verified; it starts but once
    assert parts("repeats=4").operations > plain.operations
    assert parts("num_prompts=24").operations > plain.operations
    assert parts("methods=[full-batching]").operations < plain.operations
    assert parts("sampler_overhead_s=1.6").fixed_s == pytest.approx(plain.fixed_s + 1.6)
    assert parts("utilization_loop_s=0.3").fixed_s == pytest.approx(plain.fixed_s + 0.6)
    assert parts("ideal=true").fixed_s > plain.fixed_s
    assert parts("methods=[full-batching,prepacking,vllm]").fixed_s == plain.fixed_s  # skipped where it is not set up


def test_on_a_gpu_shapes_that_cudnn_plans_and_untimed_batches_are_counted(tiny_config: Callable[..., Config]) -> None:
    def parts(kernel: str, dtype: torch.dtype = torch.bfloat16) -> duration.Parts:
        plan = prepare(tiny_config(f"methods=[padding-free+{kernel}]", "repeats=3", "warmup=1"))
        return duration.parts_of(replace(plan, devices=(torch.device("cuda"),), dtype=dtype))

    plan = prepare(tiny_config("methods=[padding-free+dense]", "repeats=3", "warmup=1"))
    shapes = len(set(plan.methods[0].shapes))
    fixed_s = parts("dense", torch.float32).fixed_s
    assert parts("dense").fixed_s == pytest.approx(fixed_s + duration.CUDNN_S * shapes)
    lengths = [plan.prompts.lengths[batch].tolist() for batch in plan.methods[0].batches]
    calls = {(len(call), each[call[-1]]) for each in lengths for call in segments.calls_of(each)}
    assert parts("segments").fixed_s == pytest.approx(fixed_s + duration.CUDNN_S * len(calls))
    assert parts("varlen").fixed_s == fixed_s
    assert parts("dense").operations > duration.parts_of(plan).operations


def test_the_place_of_an_experiment_changes_no_measurement(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    assert config_hash(replace(config, priority={"any": 3})) == config_hash(config)
    assert priority_of(config) > priority_of(replace(config, priority={"any": 3}))
    seven = compose(["experiment=today", "scale=gpu", "model=llama2-7b"])
    smaller = compose(["experiment=today", "scale=gpu", "model=llama2-1.3b"])
    assert priority_of(seven) == priority_of(smaller) + 1  # the most telling two, one after the other
    others = [compose([f"experiment={name}", "scale=gpu"]) for name in experiments() if name != "today"]
    assert min(map(priority_of, others)) > priority_of(seven)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three comparisons that take 40 s, 5 s and 20 s by the test's clock, the longest of which tells most."""
    state: dict[str, Any] = {"left": 0.0, "seconds": {4: 40.0, 3: 5.0, 2: 20.0}, "longer": 1.0, "measured": []}
    places = {4: 1, 3: 2, 2: 2}
    real = apart.run_apart

    def sweep(name: str, overrides: list[str]) -> list[list[str]]:
        common = [*TINY_OVERRIDES, *overrides, "method=full-batching"]
        return [[*common, f"batch_size={size}", f"++priority.any={places[size]}"] for size in (2, 3, 4)]

    def measure(config: Config, plan: Plan, at_most_s: float | None = None) -> int:
        takes = state["seconds"][config.batch_size] * state["longer"]
        state["measured"].append(config.batch_size)
        if at_most_s is not None and takes > at_most_s:
            state["left"] -= at_most_s
            return apart.BROKEN_OFF
        state["left"] -= takes
        return state.get("code") or real(config, plan)

    def estimate(_: Forecast, plan: Plan, times: float = 1.0) -> float:
        return float(state["seconds"][plan.config.batch_size])

    monkeypatch.setattr("src.measure.runner.load_model", lambda *_: tiny_model())
    monkeypatch.setattr("src.jobs.reproducing.sweep", sweep)
    monkeypatch.setattr("src.jobs.in_time.run_apart", measure)
    monkeypatch.setattr(Forecast, "seconds", estimate)
    monkeypatch.setattr(Forecast, "report_s", 1.0)
    monkeypatch.setattr(Clock, "left_s", property(lambda _: state["left"]))
    return state


def test_minutes_take_what_tells_most_first_and_the_next_call_goes_on(
    three: dict[str, Any], call: Call, tmp_path: Path
) -> None:
    arguments = ("experiment=today", "scale=cpu", "minutes=1", f"results_dir={tmp_path}")
    three["left"] = 50.0
    code, out, _ = call(reproduce.main, *arguments)
    assert code == 0
    assert three["measured"] == [4, 3]  # 40 s and the report leave 9 s: 5 s fit, 20 s do not
    assert "today: 3 comparisons, about 65 s\n  all of it, with the report: about 66 s\nwithin 1 minutes:" in out
    assert "left out: today: 1 comparison, about 20 s\n  mmlu-tiny-prefill-modern-b2-" in out
    assert "the same command goes on with these" in out
    three["left"] = 60.0
    code, out, _ = call(reproduce.main, *arguments)
    assert (code, three["measured"]) == (0, [4, 3, 2])
    assert "3 comparisons, 2 of them recorded already, about 20 s" in out
    assert "left out" not in out
    assert len(list(records.read_all(tmp_path))) == 3


def test_what_takes_longer_than_it_should_is_broken_off_without_a_row(
    three: dict[str, Any], call: Call, tmp_path: Path
) -> None:
    three.update(left=50.0, longer=3.0)
    code, out, _ = call(reproduce.main, "experiment=today", "scale=cpu", "minutes=1", f"results_dir={tmp_path}")
    assert code == 1
    assert three["measured"] == [4]
    assert "broken off after 0 s: it was estimated to take 40 s, and the time is over" in out
    assert "left out: today: 3 comparisons, about 65 s" in out
    assert out.endswith("no report: nothing is recorded yet; give more minutes\n")


def test_how_long_it_takes_to_fail_tells_nothing(three: dict[str, Any], call: Call, tmp_path: Path) -> None:
    three.update(left=500.0, code=1)
    code, out, _ = call(reproduce.main, "experiment=today", "scale=cpu", f"results_dir={tmp_path}")
    assert (code, three["measured"]) == (2, [4, 2, 3])  # without a limit of time in the order of the experiment's runs
    assert "left out" not in out
    assert not (tmp_path / FILE).exists()


def test_a_process_that_is_broken_off_leaves_no_row(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("isolate=true", "num_prompts=400", "repeats=10000")
    began = time.monotonic()
    assert apart.run_apart(config, at_most_s=3.0) == apart.BROKEN_OFF
    assert time.monotonic() - began < 20
    assert not list(records.read_all(Path(str(config.results_dir))))


def test_a_search_ends_where_the_next_size_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.measure.runner.load_model", lambda *_: tiny_model())
    common = [*TINY_OVERRIDES, "num_prompts=${batch_size}", "batch_size=2", "method=prepacking", "repeats=1"]
    overrides = [*common, f"results_dir={tmp_path}"]
    sizes: list[int] = []

    def fits(plan: Plan) -> bool:
        sizes.append(plan.config.batch_size)
        return plan.config.batch_size < 8

    for tried in ([2, 4, 8], [8]):  # the second call finds the first one's records
        with pytest.raises(trying.OutOfTime):
            largest_batch.search(overrides, tmp_path, fits)
        assert sizes == tried
        sizes.clear()


def test_a_search_ends_where_prompts_do_and_passes_on_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("two words\n" * 5, encoding="utf-8")
    common = [*TINY_OVERRIDES, "num_prompts=${batch_size}", "batch_size=2", "method=prepacking", "repeats=1",
              f"results_dir={tmp_path / 'results'}"]  # fmt: skip
    of_file = ["dataset=file", "dataset.source=file", f"dataset.path={file}", "++model.architecture.vocab_size=32000"]
    monkeypatch.setattr("src.measure.runner.load_model", lambda *_: tiny_model(vocab_size=32_000))
    assert largest_batch.search([*common, *of_file], tmp_path / "results") == {"prepacking": 4}  # not 8 of 5 prompts
    assert "largest batch of prepacking: 4\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^loadbit: 4-bit weights need sizes"):  # no size would mend it
        largest_batch.search([*common, "loadbit=4"], tmp_path / "results")


def test_a_search_is_estimated_to_double_until_memory_would_run_out(tiny_config: Callable[..., Config]) -> None:
    plan = prepare(tiny_config("num_prompts=4", "protocol=paper", "isolate=true", "memory_limit_mb=100"))
    wide = prepare(tiny_config("num_prompts=4", "protocol=paper", "isolate=true", "memory_limit_mb=1000"))
    small, large = (largest_batch.seconds([each], lambda _, times: times) for each in (plan, wide))
    assert 2 < small < large < 1.5 * 10 * small


def test_an_experiment_that_shows_anothers_comparisons_says_so(tmp_path: Path) -> None:
    """`make reproduce` said that none of its comparisons could be measured."""
    small = [*TINY_OVERRIDES, f"results_dir={tmp_path}"]
    runs = {"time_by_dataset": [small], "memory_and_utilization": [small], "faults": []}
    tasks = agenda.tasks_of(runs, ())
    said = agenda.announcement(list(runs), tasks, tasks, 1.0, None).splitlines()
    assert "  memory_and_utilization: its comparisons are those of time_by_dataset" in said
    assert "  faults: none of its comparisons can be measured here" in said
    assert sum(line.startswith("  time_by_dataset: 1 comparison, about") for line in said) == 1
