"""Every shipped experiment runs, at both sizes, and has a section that stands beside the paper's figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from conftest import TINY_OVERRIDES
from hypothesis import given
from hypothesis import strategies as st

from src import paper
from src.compose import compose
from src.config import CONFIG_DIR
from src.interval import Interval
from src.jobs import largest_batch
from src.jobs.experiments import experiments, small, sweep
from src.jobs.searches import SEARCHES
from src.jobs.trying import drive
from src.measure.plan import prepare
from src.measure.runner import measure as run
from src.records import store
from src.records.row import Row
from src.records.store import Record
from src.report.build import report_on
from src.report.cells import WIDEST, number_in
from src.report.claims import against, close, decided, most_alike, unlike
from src.report.section import CANNOT_TELL, FAILS, HOLDS, VERDICTS, Section, make, modules, name_of
from src.report.select import one_kind, published_as

# In make reproduce.
WITHOUT_A_PLACE = {"batch_invariance", "bench_today", "bench_traces", "forwards", "kernels", "scaling"}
NAMES = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
# Enough of each experiment for its section to have something to show: values of its axes, on a tiny model.
SMALL = {
    "readme_table": [f"metric={metric} batch_size=32 num_prompts=64" for metric in ("prefill", "ttft")],
    "time_by_dataset": ["metric=prefill dataset=mmlu", "metric=ttft dataset=samsum"],
    "speedup_by_batch_size": [f"dataset={d} batch_size={k}" for d in ("mmlu", "alpaca", "samsum") for k in (4, 16)],
    "dataset_level": ["batch_size=8", "batch_size=16"],
    "batch_cost": [f"dataset.max_tokens={m} batch_size={k} num_prompts={k}" for m in (25, 100) for k in (1, 4)],
    "speedup_predictors": ["dataset=uniform-800 num_prompts=176", "dataset=mmlu num_prompts=176"],
    "generation": ["protocol=modern generate_tokens=4"],
    "today": ["methods=[full-batching,full-batching+dense,prepacking,padding-free] ideal=true batch_size=4"],
    "traces": ["dataset.max_tokens=64 batch_size=4"],
    "under_load": [f"rate={rate} dataset.max_tokens=64 policy={p}" for rate in (50, 400) for p in ("fifo", "buckets")],
    "faults": ["faults=[]", "faults=[divide-twice]"],
    "scaling": ["batch_size=4", "batch_size=16"],
    "forwards": ["forward=fused batch_size=4", "forward=transformers batch_size=4"],
    "kernels": [
        f"dataset={d} methods=[full-batching,prepacking+segments,prepacking+dense]" for d in ("mmlu", "one-long")
    ],
    "batch_invariance": [f"dtype={dtype} methods=[prepacking,padding-free]" for dtype in ("float32", "bfloat16")],
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    results = tmp_path_factory.mktemp("results")
    for name, runs in SMALL.items():
        few = [] if name in {"speedup_predictors", "batch_cost", "scaling"} else ["num_prompts=32"]
        for one in runs:
            overrides = [f"experiment={name}", "scale=cpu", *TINY_OVERRIDES, "repeats=1", "batch_size=16", *few]
            if name == "scaling":
                overrides.append("num_prompts=${batch_size}")
            run(prepare(compose([*overrides, f"results_dir={results}", *one.split()])))
    return list(store.read_all(results))


@pytest.fixture(scope="module")
def sections(records: list[Record]) -> dict[str, Section]:
    made = {name_of(module): make(module, records) for module in modules()}
    yield made  # type: ignore[misc]
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_an_experiment_has_a_size_for_each_scale_and_a_smoke_run_of_a_few_prompts(name: str, scale: str) -> None:
    runs = sweep(name, [f"scale={scale}", "results_dir=nowhere"])
    first, last = (compose(one) for one in (runs[0], runs[-1]))
    for config in (first, last):
        assert config.model.name.startswith(("llama-", "smollm2-") if scale == "cpu" else ("llama2-", "mistral-"))
        if scale == "cpu":
            assert config.num_prompts <= (1000 if config.under_load else 480)
            assert config.dataset.source in ("profile", "shipped") or name in WITHOUT_A_PLACE
    assert len(runs) == len({tuple(one) for one in runs})
    (one,) = small(runs)
    config, whole = compose(one), first
    assert (config.num_prompts, config.batch_size, config.repeats, config.dataset.source) == (8, 4, 2, "profile")
    assert config.isolate == (scale == "gpu")  # as in earnest, where a process opens the GPU
    assert config.model.name == ("llama-110m" if scale == "gpu" else whole.model.name)
    same = ("methods", "method", "metric", "protocol", "loadbit", "faults", "generate_tokens", "ideal")
    assert [getattr(config, key) for key in same] == [getattr(whole, key) for key in same]
    assert config.results_dir == "nowhere"


def test_make_reproduce_knows_every_experiment_but_those_with_a_command_of_their_own() -> None:
    assert set(NAMES) - set(experiments()) == WITHOUT_A_PLACE
    assert set(experiments()) >= set(SEARCHES)
    assert experiments()[:3] == ("today", "traces", "generation")  # what tells most comes first


SECTIONS = [name_of(module) for module in modules()]


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in {"largest_batch", "others"}])
def test_a_section_shows_what_was_measured(name: str, sections: dict[str, Section], records: list[Record]) -> None:
    section, known = sections[name], {record.row.run_id for record in records}
    assert len(section.table), "nothing to show"
    assert len(section.table.records) == len(section.table)
    assert all(set(sources) <= known and sources for sources in section.table.records)
    assert all(claim.verdict in VERDICTS and claim.verdict != "not run" for claim in section.claims)
    assert all(claim.rule and (claim.why or claim.verdict in {HOLDS, FAILS}) for claim in section.claims)
    assert all(claim.unlike for claim in section.claims)  # a tiny model on a CPU
    assert section.figure is not None or name in {"generation", "faults", "batch_invariance", "forwards"}


def test_the_speedup_is_the_product_of_its_factors(sections: dict[str, Section]) -> None:
    for _, cells in sections["speedup_by_batch_size"].table.frame.iterrows():
        tokens, rate, share = cells.iloc[4:7]
        assert number_in(cells["Speedup"]) == pytest.approx(tokens * rate * share)


def test_the_papers_figures_stand_beside_ours(sections: dict[str, Section]) -> None:
    frame = sections["speedup_by_batch_size"].table.frame.set_index(["Dataset", "Batch"])
    assert frame.loc[("mmlu", 16), "Paper: speedup"] == pytest.approx(3.33, abs=0.005)
    readme = sections["readme_table"].table.frame.set_index(["Method", "Metric"])
    assert readme.loc[("prepacking", "Prefill"), "Paper: speedup"] == pytest.approx(5.21, abs=0.005)
    assert paper.find("speedup_predictors", "r_squared", predictor="r/k") == 0.92


@pytest.mark.parametrize("module", modules(), ids=name_of)
def test_what_was_not_run_is_said_and_not_drawn(module: Any) -> None:
    section = make(module, [])
    assert section.name == name_of(module)
    assert not len(section.table)
    assert section.figure is None
    assert all(claim.verdict == "not run" and claim.why for claim in section.claims)
    assert section.claims or section.notes


def test_every_section_is_of_an_experiment_and_takes_the_records_of_experiments() -> None:
    named = {compose([f"experiment={name}"]).experiment for name in NAMES}
    shown = [module for module in modules() if name_of(module) != "others"]
    for module in shown:
        assert name_of(module) in NAMES
        takes = set(getattr(module, "TAKES", [name_of(module)]))
        assert takes <= (named | {None} if name_of(module) == "under_load" else named)
    assert {name_of(module) for module in shown} >= named
    assert len({module.PLACE for module in modules()}) == len(modules())  # type: ignore[attr-defined]


def test_a_record_of_no_experiment_is_among_the_others_alone(records: list[Record]) -> None:
    others = [replace(record, row=replace(record.row, experiment=None)) for record in records]
    shown = {name_of(module): make(module, others) for module in modules()}
    under_load = {record.row.run_id for record in others if record.row.arrivals}
    assert [name for name, section in shown.items() if len(section.table)] == ["under_load", "others"]
    assert {run for runs in shown["under_load"].table.records for run in runs} == under_load
    assert not {run for runs in shown["others"].table.records for run in runs} & under_load
    assert not len(make(modules()[-1], records).table)


def test_a_failure_is_shown_and_not_dropped(records: list[Record]) -> None:
    from copy import deepcopy

    broken = deepcopy(records)
    for record in broken:
        if record.row.method == "full-batching":
            record.row.status, record.row.status_reason = "oom", "no memory left"
            record.row.seconds_per_batch_mean = record.row.seconds_per_prompt_mean = None
            record.row.peak_memory_mb = None
        record.row.speedup_over_full_batching = None
    for module in modules():
        section = make(module, broken)
        shown = " ".join(cell for cells in section.table.texts() for cell in cells) + " ".join(section.notes)
        if name_of(module) in {"readme_table", "time_by_dataset", "dataset_level", "speedup_by_batch_size"}:
            assert "oom" in shown
    plt.close("all")


def test_a_report_of_experiments_has_their_files(records: list[Record], tmp_path: Path) -> None:
    assert records[0].folder is not None
    text = report_on(records[0].folder.parent, tmp_path).files[0].read_text(encoding="utf-8")
    for title in ("The authors' example table", "Speedup by batch size", "When is a larger batch free?"):
        assert title in text
    assert text.startswith("# Prefill measurements\n\n## The paper's claims on ")
    assert "- **not run**: Prepacking takes larger batches than full-batching" in text
    assert "## The largest batch" not in text


INTERVALS = st.builds(
    lambda value, down, up, few: Interval(value, value / down, value * up, few),
    st.floats(0.1, 100), st.floats(1, 30), st.floats(1, 30), st.booleans(),
)  # fmt: skip


@given(found=st.lists(INTERVALS | st.none(), min_size=1, max_size=5), bound=st.floats(0.1, 100))
def test_a_verdict_needs_an_interval_on_one_side_of_the_bound(found: list[Interval | None], bound: float) -> None:
    verdict, why = against(found, bound)
    sure = [each for each in found if each and not each.few and each.high <= WIDEST * each.low]
    if verdict == HOLDS:
        assert len(sure) == len(found)
        assert all(each.low > bound for each in sure)
        assert not why
    elif verdict == FAILS:
        assert any(each.high < bound for each in sure)
    else:
        assert verdict == CANNOT_TELL
        assert why
        assert not any(each.high < bound for each in sure)


@given(first=INTERVALS, second=INTERVALS, bound=st.floats(0.1, 100))
def test_no_verdict_turns_around_between_runs_whose_intervals_overlap(
    first: Interval, second: Interval, bound: float
) -> None:
    verdicts = {against([each], bound)[0] for each in (first, second)}
    if first.low <= second.high and second.low <= first.high:
        assert verdicts != {HOLDS, FAILS}


LIKE_THEIRS = Row(
    model="llama2-1.3b", weights_source="hub", loadbit="4", dtype="float16", numerics="authors",
    dataset_source="hub", num_prompts=1000, batch_size=64, protocol="paper", device_name="NVIDIA RTX A6000",
)  # fmt: skip


def test_figures_are_compared_only_where_everything_was_as_in_the_paper() -> None:
    assert unlike(LIKE_THEIRS, 64) == ()
    for column, value, name in (
        ("model", "llama-15m", "model"), ("weights_source", "random", "weights"), ("loadbit", "none", "bits"),
        ("numerics", None, "types and numerics"), ("dataset_source", "profile", "prompts"),
        ("num_prompts", 64, "number of prompts"), ("batch_size", 32, "batch"), ("protocol", "modern", "protocol"),
        ("device_name", "NVIDIA H100", "device"),
    ):  # fmt: skip
        (said,) = unlike(replace(LIKE_THEIRS, **{column: value}), 64)
        assert said.startswith(f"{name} "), said
    verdict = (HOLDS, "")
    assert decided("", "", verdict, "", "", (), close(5.0, 5.2)).beside == "equal"
    assert decided("", "", verdict, "", "", (), close(Interval(3, 2, 6), 5.2)).beside == "equal"
    assert decided("", "", verdict, "", "", (), close(3.0, 5.2)).beside == "different"
    assert decided("", "", verdict, "", "", ("batch 32 (paper: 64)",), close(5.0, 5.2)).beside == ""


def test_the_claim_is_judged_on_the_run_most_like_the_papers_whichever_was_written_first() -> None:
    ours, four, plain = replace(LIKE_THEIRS, model="llama-15m"), LIKE_THEIRS, replace(LIKE_THEIRS, loadbit="none")
    assert {most_alike(rows, batch_size=64).batch_size for rows in ([ours, four, plain], [plain, four, ours])} == {64}
    for rows in ([ours, four, plain], [plain, four, ours]):
        assert most_alike(rows, batch_size=64) is four


def test_published_figures_stand_beside_rows_of_their_bits_only() -> None:
    assert published_as("llama2-7b", "4") == "llama2-7b"
    assert published_as("llama2-7b", "none") == ""
    assert published_as("llama2-1.3b", "8", "8") == "llama2-1.3b"
    assert published_as("llama-15m", "none") == "llama2-1.3b"


def test_the_protocol_and_type_that_cover_most_are_shown() -> None:
    rows = [Row(protocol=protocol, dtype=dtype, dataset=dataset) for protocol, dtype, dataset in
            [("paper", "float32", "mmlu"), ("modern", "float32", "mmlu"), ("modern", "bfloat16", "mmlu"),
             ("modern", "float32", "alpaca")]]  # fmt: skip
    assert one_kind(rows) == [rows[1], rows[3]]
    assert one_kind(rows[:2]) == [rows[0]]


@given(capacity=st.integers(0, 30_000), start=st.integers(1, 64), prompts=st.integers(1, 30_000))
def test_the_search_ends_at_the_largest_batch_within_an_eighth(capacity: int, start: int, prompts: int) -> None:
    tried: list[int] = []

    def status(size: int) -> str:
        tried.append(size)
        return "too few prompts" if size > prompts else "ok" if size <= capacity else "oom"

    found, _ = drive(largest_batch.sizes(start), status)
    assert found <= capacity
    assert len(tried) == len(set(tried)) <= 32
    failed = [size for size in tried if capacity < size <= prompts]
    if failed:
        assert min(failed) - found <= max(1, found // largest_batch.GAP)
    elif start <= min(capacity, prompts):
        assert found > min(capacity, prompts, largest_batch.MOST) // 2
