"""Methods under load: what is recorded, searched and shown, and what bad input is told."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY_OVERRIDES
from matplotlib import pyplot as plt

from src import run
from src.cli import UserError
from src.compare import pairs
from src.compare.page import table
from src.compare.sources import Measurement, Source
from src.compose import compose
from src.config import Config
from src.jobs import largest_rate, trying
from src.jobs.experiments import small, sweep
from src.jobs.trying import OutOfTime
from src.measure import load
from src.measure.plan import prepare
from src.prefilling.method import Serving
from src.records import store
from src.records.row import Row
from src.records.store import Record
from src.report import rates
from src.report.answer import in_short
from src.report.build import report_on
from src.report.section import make
from src.report.sections import under_load
from src.report.waiting import load_table

sys.path.insert(0, str(ROOT / "scripts"))

import record_checks

Measure = Callable[..., list[Record]]
Call = Callable[..., tuple[int, str, str]]
LOADED = ["metric=ttft", "arrivals=poisson", "num_prompts=24", "batch_size=4"]
ALL = "methods=[full-batching,prepacking,padding-free]"


def test_a_run_under_load_records_when_each_prompt_came_and_was_served(measure: Measure, tmp_path: Path) -> None:
    found = measure(*LOADED, ALL, "rate=400", "slo_ms=1000", "policy=lookahead", f"results_dir={tmp_path}")
    for record in found:
        row = record.row
        assert (row.status, row.arrivals, row.rate, row.policy, row.clock, row.slo_ms) == (
            "ok", "poisson", 400.0, "lookahead 16", "virtual", 1000.0
        )  # fmt: skip
        assert record.folder is None
        with (tmp_path / row.run_id / "requests.csv").open(encoding="utf-8") as file:
            requests = list(csv.DictReader(file))
        assert sorted(int(each["prompt"]) for each in requests) == list(range(24))
        waited = [float(each["first_token_s"]) - float(each["arrival_s"]) for each in requests]
        queued = [float(each["start_s"]) - float(each["arrival_s"]) for each in requests]
        assert row.ttft_mean_s == pytest.approx(np.mean(waited))
        assert row.ttft_p99_s == pytest.approx(max(waited))
        assert row.queue_mean_s == pytest.approx(np.mean(queued))
        assert min(queued) >= 0
        batches = {int(each["batch"]) for each in requests}
        assert len(batches) == row.num_batches == len(record.samples)
        # A batch takes in virtual time what it took in truth.
        for number in batches:
            own = [each for each in requests if int(each["batch"]) == number]
            took = {float(each["first_token_s"]) - float(each["start_s"]) for each in own}
            assert max(took) == pytest.approx(record.samples[number]["seconds"])
            assert len(own) == record.samples[number]["prompts"]
            assert record.samples[number]["rows"] <= 4  # prepacking looks ahead in bins
        assert row.prompts_per_batch_mean == pytest.approx(24 / row.num_batches)
        assert row.goodput_per_s is not None
        assert row.verified_prompts
        assert row.speedup_over_full_batching is row.fraction_of_ideal is None
    assert len({record.row.workload_fingerprint for record in found}) == 1
    checked = record_checks.check_folder(tmp_path)
    assert [problem for problem in checked.problems if "uncommitted" not in problem] == []
    (tmp_path / found[0].row.run_id / "requests.csv").write_text("prompt,arrival_s,first_token_s\n", encoding="utf-8")
    assert any(
        "requests.csv has 0 prompts, the row 24" in each for each in record_checks.check_folder(tmp_path).problems
    )


def test_arrivals_are_seeded_and_part_of_the_workload(tiny_config: Callable[..., Config]) -> None:
    def plan(*more: str) -> tuple[str, list[float]]:
        made = prepare(tiny_config(*LOADED, *more))
        assert made.arrivals_s is not None
        return made.workload_fingerprint, made.arrivals_s.tolist()

    same = plan("rate=4")
    assert plan("rate=4") == same
    others = [plan(*more) for more in (["rate=5"], ["rate=4", "seed=1"], ["rate=4", "arrivals=gamma"],
                                       ["rate=4", "arrivals=trace", "trace=azure-conv-2023"])]  # fmt: skip
    assert len({same[0], *(other[0] for other in others)}) == 5
    assert np.array(others[0][1]) * 5 == pytest.approx(
        np.array(same[1]) * 4
    )  # another rate is the same draw, stretched


def test_the_azure_datasets_keep_lengths_and_times_together(tiny_config: Callable[..., Config]) -> None:
    made = prepare(tiny_config(*LOADED, "arrivals=trace", "rate=3", "dataset=azure-conv", "dataset.max_tokens=500",
                               "++model.architecture.max_position_embeddings=512"))  # fmt: skip
    assert made.arrivals_s is not None
    lines = (ROOT / "src/workload/traces/azure-conv-2023.csv").read_text(encoding="utf-8").splitlines()[1:]
    tokens = [min(500, int(line.split(",")[1])) for line in lines]
    lengths = made.prompts.lengths[np.concatenate(made.shuffled)].tolist()
    places = [place for place in range(len(tokens)) if tokens[place : place + 24] == lengths]
    assert len(places) == 1, "24 requests that follow each other in the trace"
    times_s = [float(line.split(",")[0]) for line in lines[places[0] : places[0] + 24]]
    span = times_s[-1] - times_s[0]
    assert made.arrivals_s / made.arrivals_s[-1] == pytest.approx((np.array(times_s) - times_s[0]) / span, abs=1e-6)
    assert 23 / made.arrivals_s[-1] == pytest.approx(3)


def test_the_users_own_trace_is_replayed_in_its_order(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,prompt_tokens\n" + "".join(f"{2 * n},{5 + n}\n" for n in range(40)), encoding="utf-8")
    own = ["dataset=file", f"dataset.path={path}", "dataset.source=file"]
    made = prepare(tiny_config(*LOADED, "arrivals=trace", "rate=10", *own))
    lengths = made.prompts.lengths[np.concatenate(made.shuffled)]
    assert (np.diff(lengths) == 1).all()
    assert made.arrivals_s == pytest.approx(np.arange(24) / 10)


@pytest.mark.parametrize("policy", ["fifo", "token-budget", "buckets", "lookahead", "shortest-first"])
def test_any_policy_goes_with_any_method(policy: str, measure: Measure, tmp_path: Path) -> None:
    for record in measure(*LOADED, ALL, "rate=1000", f"policy={policy}", f"results_dir={tmp_path}"):
        assert record.row.status == "ok"
        assert str(record.row.policy).startswith(policy)
        assert record.row.goodput_per_s is None  # no objective was given
    table = load_table([record.row for record in measure(*LOADED, ALL, "rate=1000", f"policy={policy}",
                                                         f"results_dir={tmp_path}")])  # fmt: skip
    assert table.count(policy) == 3
    assert "n/a" in table


def test_real_time_and_virtual_time_agree_on_this_machine(measure: Measure, tmp_path: Path) -> None:
    rows = {}
    for clock in ("virtual", "real"):
        (record,) = measure(*LOADED, "rate=30", f"clock={clock}", "num_prompts=60", f"results_dir={tmp_path}")
        rows[clock] = record.row
    assert rows["real"].ttft_p50_s == pytest.approx(rows["virtual"].ttft_p50_s, abs=0.02)
    assert rows["real"].stable is rows["virtual"].stable is True
    assert rows["real"].run_id != rows["virtual"].run_id


def test_continuous_batching_serves_the_same_arrivals_as_they_come(measure: Measure, tmp_path: Path) -> None:
    mine, theirs = measure(
        *LOADED, "methods=[padding-free,continuous-batching]", "rate=20", "clock=real", "slo_ms=5000",
        f"results_dir={tmp_path}",
    )  # fmt: skip
    assert theirs.row.status == "ok", theirs.row.status_reason
    assert theirs.row.policy == "its own"
    assert theirs.row.workload_fingerprint == mine.row.workload_fingerprint
    assert theirs.row.queue_mean_s is theirs.row.prompts_per_batch_mean is None or np.isnan(theirs.row.queue_mean_s)
    assert len(theirs.requests) == 24
    assert all(each["first_token_s"] > each["arrival_s"] for each in theirs.requests)
    assert "continuous-batching" in load_table([mine.row, theirs.row])


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("[enforce] can't allocate memory")], ids=type)
def test_an_engine_that_fails_while_it_serves_costs_its_own_row(
    error: Exception, measure: Measure, monkeypatch: pytest.MonkeyPatch,
                                                                tmp_path: Path) -> None:  # fmt: skip
    real = load.timed_batch

    def failing(plan: object, outcome: object, *rest: object) -> object:
        if outcome.method.name == "prepacking":  # type: ignore[attr-defined]
            raise error
        return real(plan, outcome, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "timed_batch", failing)
    rows = [record.row for record in measure(*LOADED, ALL, "rate=1000", f"results_dir={tmp_path}")]
    assert [row.status for row in rows] == ["ok", "oom", "ok"]


# --- the largest rate


def walk(first: int, answer: Callable[[int], str], tried: list[int] | None = None) -> tuple[int | None, int | None]:
    """Search with these answers, noting what was tried."""
    tries, tried = largest_rate.steps(first), [] if tried is None else tried
    tried.append(next(tries))
    while True:
        try:
            tried.append(tries.send(answer(tried[-1])))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("capacity", [-30, -3, 0, 1, 17, 90])
@pytest.mark.parametrize("first", [-24, 0, 16])
def test_the_search_ends_between_two_rates_nine_percent_apart(capacity: int, first: int) -> None:
    tried: list[int] = []
    assert walk(first, lambda step: "keeps" if step <= capacity else "breaks", tried) == (capacity, capacity + 1)
    assert len(tried) == len(set(tried)) <= 5 + abs(capacity - first) // largest_rate.PER_DOUBLING + 1
    assert largest_rate.rate_of(capacity + 1) / largest_rate.rate_of(capacity) == pytest.approx(1.09, abs=0.01)


def test_a_search_without_an_answer_ends() -> None:
    assert walk(0, lambda _: "hopeless") == (None, 0)
    assert walk(0, lambda _: "failed") == (None, None)
    for answer, bound in (("keeps", largest_rate.HIGHEST), ("breaks", largest_rate.LOWEST)):
        tried: list[int] = []
        walk(0, lambda _, answer=answer: answer, tried)
        assert abs(tried[-1] - bound) <= largest_rate.PER_DOUBLING


def row_at(rate: float, p99_s: float, method: str = "full-batching", policy: str = "fifo", **changes: object) -> Row:
    return Row(
        run_id=f"{method}-{policy}-{rate}", comparison_id=f"{method}-{policy}-{rate}", method=method, dataset="mmlu",
        model="tiny", metric="ttft", protocol="modern", batch_size=4, num_prompts=100, device_name="a CPU",
        arrivals="poisson", rate=rate, policy=policy, clock="virtual", slo_ms=100.0, ttft_p99_s=p99_s,
        ttft_p99_low_s=0.9 * p99_s, ttft_p99_high_s=1.2 * p99_s, stable=p99_s < 1, busy_share=0.5,
        experiment="under_load", created_at=f"2026-01-01T00:00:{int(rate) % 60:02d}+00:00", **changes,
    )  # fmt: skip


def test_seeds_have_curves_of_their_own_and_invalid_runs_decide_nothing() -> None:
    rows = [row_at(rate, 0.05, seed=seed) for rate in (4, 8) for seed in (0, 1)]
    noisy = row_at(2, 0.5)
    noisy.valid = False
    for number, row in enumerate([*rows, noisy]):
        row.run_id = row.comparison_id = f"run {number}"
    found = under_load.select([Record(row, {}, {}) for row in [*rows, noisy]])
    ((both,),) = [list(curves.values()) for curves in found]
    assert [[row.rate for row in curve.rows] for curve in both.of_seed.values()] == [[2, 4, 8], [4, 8]]
    assert [row.rate for row in both.best] == [8, 8]


def test_the_largest_rate_of_several_seeds_is_their_mean_and_ratios_are_taken_pair_by_pair() -> None:
    rows = []
    for seed, (base, packed) in enumerate([(4, 8), (8, 16), (16, 32)]):
        for method, best in (("full-batching", base), ("prepacking", packed)):
            rows += [row_at(rate, 0.05 if rate <= best else 0.5, method, seed=seed) for rate in (2, 4, 8, 16, 32, 34)
                     if rate <= best + 2]  # fmt: skip
            rows.append(row_at(1.01 * best, 0.5, method, seed=seed))
    for number, row in enumerate(rows):
        row.run_id = row.comparison_id = f"run {number}"
    (found,) = rates.curves([Record(row, {}, {}) for row in rows])
    base, packed = (found[method, "fifo", "virtual", ""] for method in ("full-batching", "prepacking"))
    assert base.rate is not None
    assert base.rate.value == pytest.approx(8)
    spread = 4.303 * math.log(2) / math.sqrt(3)  # of three seeds a factor of two apart
    assert math.log(base.rate.high / base.rate.value) == pytest.approx(spread + math.log(1.01), abs=0.001)
    assert math.log(base.rate.low / base.rate.value) == pytest.approx(-spread, abs=0.001)
    over = packed.over(base)
    assert over is not None
    assert (over.value, over.low, over.high) == pytest.approx((2, 2 / 1.01, 2 * 1.01)), "they move together"
    without = [row for row in rows if row.seed or row.method != "prepacking"]
    without += [row_at(1, 0.5, "prepacking", seed=0)]
    (found,) = rates.curves([Record(row, {}, {}) for row in without])
    packed, base = (found[method, "fifo", "virtual", ""] for method in ("prepacking", "full-batching"))
    assert (len(packed.found), len(packed.of_seed), packed.shared(base)) == (2, 3, [1, 2])
    over = packed.over(base)
    assert over is not None
    assert over.value == pytest.approx(2), "a seed without a rate takes none from the others"
    lines = make(under_load, [Record(row, {}, {}) for row in without]).table.frame.set_index("Method")
    assert lines.loc["prepacking", "Seeds"] == "2 of 3"


def test_ways_of_one_method_have_curves_of_their_own_and_the_newest_run_of_a_rate_stands() -> None:
    rows = [row_at(rate, 0.05 if rate < 8 else 0.5, "padding-free") for rate in (2, 4, 8)]
    rows += [row_at(rate, 0.5, "padding-free", attention_asked="dense") for rate in (2, 4)]
    rows += [row_at(8, 0.06, "padding-free")]
    rows[-1].created_at = "2027-01-01T00:00:00+00:00"
    for number, row in enumerate(rows):
        row.run_id = row.comparison_id = f"run {number}"
    (found,) = rates.curves([Record(row, {}, {}) for row in rows])
    assert {name[3]: [row.rate for row in each.best] for name, each in found.items()} == {
        "": [8], "attention_asked dense": [],
    }  # fmt: skip


def test_what_was_never_broken_is_marked_in_ratios_too() -> None:
    rows = [row_at(4, 0.05), row_at(8, 0.5), row_at(8, 0.05, "prepacking"), row_at(4, 0.05, "padding-free"),
            row_at(8, 0.5, "padding-free")]  # fmt: skip
    shown = make(under_load, [Record(row, {}, {}) for row in rows])
    at = {column: place for place, column in enumerate(shown.table.header)}
    told = {line[at["Method"]]: line[at["Over full-batching, fifo"]] for line in shown.table.texts()}
    assert told["prepacking"] == "2.00x or more"
    assert told["padding-free"].startswith("1.00x [")
    plt.close(shown.figure)
    shown = make(under_load, [Record(row, {}, {}) for row in [rows[0], *rows[2:]]])
    told = {line[at["Method"]]: line[at["Over full-batching, fifo"]] for line in shown.table.texts()}
    assert told["padding-free"] == "1.00x or less"
    assert told["prepacking"] == ""
    plt.close(shown.figure)


def test_a_rate_at_which_too_few_prompts_came_bounds_the_search_and_breaks_nothing() -> None:
    assert largest_rate.judged(None, True, 0.9) == "short"
    assert largest_rate.judged(None, False, 0.9) == "breaks"
    assert walk(0, lambda step: "keeps" if step < 20 else "short") == (19, None)
    row = row_at(4, 0.05)
    row.stable = None
    assert "cannot tell" in load_table([row])
    (found,) = rates.curves([Record(each, {}, {}) for each in (row_at(2, 0.05), row)])
    (both,) = found.values()
    assert ([best.rate for best in both.best], both.bounded) == ([2], False), "2 a second, or more"


def test_a_request_without_a_time_is_named(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,prompt_tokens\n" + "".join(f"{n},5\n" for n in range(30)) + ",5\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"1 of 31 requests of mine.csv do not say when they came"):
        prepare(tiny_config(*LOADED, "arrivals=trace", "rate=10", "dataset=file", "dataset.source=file",
                            f"dataset.path={path}"))  # fmt: skip


def test_a_trace_of_times_alone_is_refused_as_a_trace(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text("arrival_s\n" + "".join(f"{n}\n" for n in range(30)), encoding="utf-8")
    with pytest.raises(UserError, match=r"^trace: .*times.csv.*; give requests .* text or prompt_tokens$"):
        prepare(tiny_config(*LOADED, "arrivals=trace", "rate=10", f"trace={path}"))


def test_a_search_says_which_of_its_runs_are_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row_at(1020, 0.5, "padding-free")
    row.valid = False
    monkeypatch.setattr(largest_rate, "_first_step", lambda _: 80)
    monkeypatch.setattr(trying.records, "read", lambda _: Record(row, {}, {}))
    monkeypatch.setattr(largest_rate, "became_of", lambda _: "hopeless")
    overrides = [*TINY_OVERRIDES, *LOADED, "slo_ms=60000", "method=padding-free", f"results_dir={tmp_path}"]
    largest_rate.search(overrides, tmp_path, measure=lambda _: None)
    assert "padding-free at 1020 prompts a second is INVALID" in capsys.readouterr().err


def test_a_search_with_rerun_measures_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest_rate, "_first_step", lambda _: 80)
    monkeypatch.setattr(largest_rate, "became_of", lambda _: "hopeless")
    overrides = [*TINY_OVERRIDES, *LOADED, "slo_ms=60000", "method=padding-free", f"results_dir={tmp_path}"]
    measured: list[object] = []
    for more in ([], ["rerun=true"]):
        largest_rate.search([*overrides, *more], tmp_path, measure=measured.append)
    assert len(measured) == 2


def test_what_became_of_a_rate() -> None:
    assert largest_rate.became_of(row_at(1, 0.1)) == "keeps"
    assert largest_rate.became_of(row_at(1, 0.11)) == "breaks"
    row = row_at(1, 0.05)
    row.stable = False
    assert largest_rate.became_of(row) == "breaks"
    row = row_at(1, 0.2)
    row.busy_share = 0.01
    assert largest_rate.became_of(row) == "hopeless", "a batch alone takes longer than the objective"
    row.status = "oom"
    assert largest_rate.became_of(row) == "failed"


def test_a_search_measures_each_rate_once_and_goes_on_from_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largest_rate, "_first_step", lambda _: 80)
    monkeypatch.setattr(largest_rate, "became_of", lambda row: "keeps" if row.rate < 5000 else "breaks")
    overrides = [*TINY_OVERRIDES, *LOADED, "slo_ms=60000", "method=padding-free", f"results_dir={tmp_path}"]
    asked = []

    def may_start(plan: object) -> bool:
        asked.append(plan.config.rate)  # type: ignore[attr-defined]
        return len(asked) != 3

    with pytest.raises(OutOfTime):
        largest_rate.search(overrides, tmp_path, may_start)
    assert len(list(store.read_all(tmp_path))) == 2
    found = largest_rate.search(overrides, tmp_path, may_start)
    assert len(asked) == len(set(asked)) + 1  # the one that was not started the first time
    rates = sorted(record.row.rate or 0.0 for record in store.read_all(tmp_path))
    assert rates == [1020.0, 2050.0, 4100.0, 4870.0, 5310.0, 5790.0, 8190.0]
    assert found == {"padding-free": (4870.0, 5310.0)}
    assert largest_rate.in_words(found["padding-free"], 60_000) == "4870 prompts a second (5310 is too much)"
    assert largest_rate.in_words((16_400.0, None), 60_000) == "16400 prompts a second, or more"


def test_an_objective_below_one_batchs_time_is_answered_and_not_searched_for(tmp_path: Path, call: Call) -> None:
    arguments = [*TINY_OVERRIDES, *LOADED, "slo_ms=0.001", "method=padding-free", f"results_dir={tmp_path}"]
    code, out, _ = call(run.main, *arguments)
    assert code == 0
    assert "padding-free: none: at" in out
    assert "p99 is above 0.001 ms" in out


def test_the_report_draws_the_rate_and_tells_the_ratio_to_full_batching(tmp_path: Path) -> None:
    rows = [row_at(rate, p99_s) for rate, p99_s in ((1, 0.02), (2, 0.05), (4, 0.09), (8, 0.2), (16, 5.0))]
    rows += [row_at(rate, p99_s, "prepacking") for rate, p99_s in ((4, 0.02), (8, 0.05), (16, 0.095), (32, 3.0))]
    rows += [row_at(rate, p99_s, "prepacking", "lookahead 16") for rate, p99_s in ((1, 0.2), (2, 0.3))]
    rows += [row_at(rate, p99_s, "vllm", "its own") for rate, p99_s in ((8, 0.02), (16, 0.3))]
    rows[-1].clock = rows[-2].clock = "real"
    section = make(under_load, [Record(row, {}, {}) for row in rows])
    lines = section.table.texts()
    at = {column: place for place, column in enumerate(section.table.header)}
    told = {(line[at["Method"]], line[at["Policy"]]): line for line in lines if line[at["Clock"]] == "virtual"}
    named = {tuple(line[at[name]] for name in ("Method", "Policy", "Clock")) for line in lines}
    assert ("vllm", "its own", "real") in named
    assert told["prepacking", "fifo"][at["Largest rate (prompts / s)"]] == "16.00 [8.00, 32.00]"
    assert told["full-batching", "fifo"][at["Largest rate (prompts / s)"]] == "4.00 [2.00, 8.00]"
    assert told["full-batching", "fifo"][at["Over full-batching, fifo"]] == "1.00x"
    assert told["prepacking", "fifo"][at["Over full-batching, fifo"]].startswith("4.00x [1.00")
    assert told["prepacking", "lookahead 16"][at["Largest rate (prompts / s)"]] == "none"
    assert section.figure is not None
    assert [panel.get_title().splitlines()[0] for panel in section.figure.axes] == ["fifo", "lookahead 16"]
    plt.close(section.figure)
    assert in_short([rows[0]]) == "full-batching 1/s: p99 20 ms"
    assert in_short([rows[4]]).endswith("and it fell behind")


def test_a_report_of_runs_under_load_is_written(measure: Measure, tmp_path: Path) -> None:
    measure(*LOADED, ALL, "arrivals=trace", "rate=400", "slo_ms=1000", "experiment=under_load",
            "model.name=tiny", "dataset=mmlu",
            "dataset.max_tokens=null", "dataset.source=profile", "policy=fifo",
            f"results_dir={tmp_path}")  # fmt: skip
    report = report_on(tmp_path)
    text = (report.folder / "summary.md").read_text(encoding="utf-8")
    assert "Arrivals: trace" in text or "Arrivals: poisson" in text
    assert (report.folder / "under_load.csv").is_file()
    assert (report.folder / "under_load.png").is_file()


def test_runs_by_themselves_are_shown_too_with_an_objective_or_without(measure: Measure, tmp_path: Path) -> None:
    for more in (["slo_ms=1000"], []):
        measure(*LOADED, "method=prepacking", "rate=400", *more, f"results_dir={tmp_path}")
    text = (report_on(tmp_path).folder / "under_load.md").read_text(encoding="utf-8")
    assert text.count("| prepacking |") == 2
    assert "no objective" in text
    assert not (tmp_path / "report" / "others.md").exists()


def test_two_machines_are_compared_by_what_prompts_waited() -> None:
    rows = [row_at(4, 0.05, ttft_mean_s=mean_s, ttft_mean_low_s=0.9 * mean_s, ttft_mean_high_s=1.1 * mean_s,
                   seconds_per_batch_mean=0.01, workload_fingerprint="f") for mean_s in (0.04, 0.02)]  # fmt: skip
    sources = [Source(letter, letter, [Measurement(row)], {}) for letter, row in zip("AB", rows, strict=True)]
    (pair,) = pairs.compare(sources).pairs
    assert pair.ratio is not None
    assert pair.ratio.value == pytest.approx(2)
    assert pair.ratio.low < 2 < pair.ratio.high
    assert pair.speedups == (None, None)
    text = table([pair], 0.01)
    assert "mean TTFT (s)" in text
    assert "full-batching, fifo" in text


def test_a_smoke_run_takes_one_rate() -> None:
    overrides = small(sweep("under_load", ["scale=cpu", "device=cpu"]))[0]
    config = compose(overrides)
    assert (config.rate, config.num_prompts) == (50.0, 8)


def test_engines_that_take_prompts_one_by_one_are_told_from_others() -> None:
    from src.prefilling.continuous_batching import ContinuousBatching
    from src.prefilling.modern import Modern
    from src.prefilling.vllm.driver import Vllm

    assert issubclass(ContinuousBatching, Serving)
    assert issubclass(Vllm, Serving)
    assert not issubclass(Modern, Serving)


# --- bad input

BAD = {
    "rate=0": "rate: 0; give a number above 0",
    "rate=-3": "rate: -3; give a number above 0",
    "rate=nan": "rate: nan; give a number above 0",
    "rate=1e-300": "rate: 1e-300; give 0.0001 to 1e+06",
    "rate=2 policy=buckets buckets=1000000000": "buckets: 1000000000; give how many",
    "arrivals=storm": "arrivals: unknown 'storm'; choose one of all, poisson, gamma, trace",
    "policy=luck": "policy: unknown 'luck'; choose one of buckets, fifo, lookahead, shortest-first, token-budget",
    "clock=sun": "clock: unknown 'sun'; choose one of virtual, real",
    "rate=2 slo_ms=0": "slo_ms: 0; give a number above 0",
    "": "slo_ms: is needed to look for the largest rate that keeps it",
    "rate=2 arrivals=all": "rate: has no effect with arrivals=all",
    "policy=lookahead arrivals=all": "policy: has no effect with arrivals=all",
    "rate=2 burstiness=2": "burstiness: has no effect with arrivals=poisson; use arrivals=gamma",
    "rate=2 arrivals=gamma burstiness=-1": "burstiness: -1; give a number above 0",
    "rate=2 token_budget=9": "token_budget: has no effect with policy=fifo; use policy=token-budget",
    "rate=2 policy=token-budget token_budget=0": "token_budget: 0 is too small",
    "rate=2 policy=lookahead lookahead=2": "lookahead: 2 is less than a batch (batch_size=4)",
    "rate=2 policy=buckets buckets=[9,3]": "buckets: [9, 3]; give how many, or the lengths at which they end",
    "rate=2 policy=buckets buckets=few": "buckets: few; give how many",
    "rate=2 policy=shortest-first ageing=0": "ageing: 0 tokens a second; give a number above 0",
    "rate=2 metric=prefill": "metric: prefill does not go with arrivals=poisson; add metric=ttft",
    "rate=2 protocol=paper": "protocol: paper does not go with arrivals=poisson; use protocol=modern",
    "rate=2 method=length-ordered": "method: length-ordered needs all prompts before its first batch",
    "rate=2 method=length-ordered+dense": "method: length-ordered+dense needs all prompts before its first batch",
    "rate=2 method=continuous-batching": "clock: continuous-batching serves in real time only; use clock=real",
    "rate=2 arrivals=trace": "trace: the prompts of 'mmlu' do not say when they came; choose one of azure-code-2023",
    "rate=2 arrivals=trace trace=gone": "trace: there is neither a shipped trace nor a file 'gone'",
    "rate=2 num_prompts=1 batch_size=1": "num_prompts: 1 does not go with arrivals=poisson; give 2 or more",
}  # fmt: skip


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_is_one_line(typed: str, tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError) as error:
        prepare(tiny_config(*LOADED, *typed.split()))
    assert BAD[typed] in str(error.value)
    assert "\n" not in str(error.value)
