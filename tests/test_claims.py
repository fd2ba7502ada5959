"""A claim is judged by its rule on the rows that it is about, and on no others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from src import paper
from src.prefilling.method import PHASES
from src.records.row import Row
from src.records.store import Record, sample_row
from src.report.section import CANNOT_TELL, FAILS, HOLDS, Claim, Section, make, modules, name_of


@pytest.fixture(autouse=True)
def figures_closed() -> Iterator[None]:
    yield
    plt.close("all")


SECTIONS = {name_of(module): module for module in modules()}


def a_record(method: str, seconds: Any = ((1.0,), (1.0,)), **columns: Any) -> Record:
    """A record of seconds[repeat][batch], on mmlu unless said otherwise."""
    table = np.asarray(seconds, dtype=float)
    known = {
        "status": "ok", "dataset": "mmlu", "dataset_source": "profile", "model": "llama-8m", "model_hash": "m",
        "weights_source": "random", "metric": "prefill", "protocol": "modern", "batch_size": 16, "num_prompts": 64,
        "repeats": len(table), "num_batches": table.shape[1], "device_name": "some CPU", "dtype": "float32",
        "loadbit": "none", "workload_fingerprint": "w", "comparison_id": "run", "seconds_per_batch_mean": table.mean(),
        "seconds_per_prompt_mean": table.sum(1).mean() / 64,
    }  # fmt: skip
    if method != "full-batching" and known["status"] == "ok":
        known["speedup_over_full_batching"] = 2.0  # as a run with full-batching has it
    row = Row(method=method, **known | columns)
    row.run_id = f"{method}-{row.comparison_id}-{row.dataset}-{row.batch_size}-{row.faults}-{row.status}"
    numbers = {"prompts": 1, "useful_tokens": 1, "computed_tokens": 1, "rows": 1}
    samples = [
        sample_row(repeat, 0, batch, numbers, {"forward": value}, value, PHASES)
        for repeat, line in enumerate(table) for batch, value in enumerate(line)
    ]  # fmt: skip
    return Record(row, {}, {}, samples, [])


def section_of(name: str, records: list[Record]) -> Section:
    for record in records:
        record.row.experiment = record.row.experiment or name
    return make(SECTIONS[name], records)


def only_claim(name: str, records: list[Record]) -> Claim:
    (claim,) = section_of(name, records).claims
    return claim


def with_speedup(value: float, low: float, high: float, few: bool = False) -> dict[str, Any]:
    return {"speedup_over_full_batching": value, "speedup_ci_low": low, "speedup_ci_high": high,
            "intervals_rest_on_few": few, "speedup_verdict": "faster"}  # fmt: skip


@pytest.mark.parametrize(
    ("speedup", "verdict"),
    [((5, 3, 8), HOLDS), ((5, 1.9, 8), CANNOT_TELL), ((1.5, 1.2, 1.9), FAILS), ((5, 3, 8, True), CANNOT_TELL)],
)
def test_the_example_table(speedup: tuple[Any, ...], verdict: str) -> None:
    columns = {"protocol": "paper", "batch_size": 32}
    records = [a_record("prepacking", **columns, **with_speedup(*speedup)),
               *(a_record(name, **columns) for name in ("full-batching", "length-ordered"))]  # fmt: skip
    claim = only_claim("readme_table", records)
    assert (claim.verdict, claim.beside, claim.paper) == (verdict, "", "5.21x")
    assert "batch 32 (paper: 64)" in claim.unlike


def test_every_dataset_must_be_there_and_faster() -> None:
    def claimed(*, left_out: str = "", slower: str = "", **of_alpaca: Any) -> Claim:
        records = []
        names = ("mmlu", "wikitext512", "alpaca", "samsum", "rlhf", "wikitext256")
        for name, metric in itertools.product(names, ("prefill", "ttft")):
            cut, run = {"wikitext512": 512, "wikitext256": 256}.get(name), f"{name} {metric}"
            columns = {"dataset": name, "comparison_id": run, "workload_fingerprint": run, "dataset_max_tokens": cut,
                       "metric": metric, **(of_alpaca if name == "alpaca" else {})}  # fmt: skip
            speedup = with_speedup(0.8, 0.7, 0.9) if name == slower else with_speedup(2, 1.5, 3)
            both = [a_record("prepacking", **columns, **speedup), a_record("full-batching", **columns)]
            records += both * (run != left_out)
        return only_claim("time_by_dataset", records)

    assert claimed().verdict == HOLDS
    missing = claimed(left_out="rlhf ttft")
    assert (missing.verdict, missing.why) == (CANNOT_TELL, "not run: TTFT on rlhf")
    assert claimed(slower="alpaca", left_out="rlhf ttft").verdict == FAILS
    invalid = claimed(valid=False, invalid_reasons="other processes used 40 % of the processor meanwhile")
    assert (invalid.verdict, invalid.why) == (CANNOT_TELL, "a run that it rests on is INVALID")
    assert claimed(valid=False, invalid_reasons="measured with faults on purpose (own-shuffle)").verdict == HOLDS
    once = claimed(repeats=1)
    assert (once.verdict, once.why) == (CANNOT_TELL, "too few batches or repeats for an interval")


def test_a_section_is_of_one_seed_and_of_the_runs_that_may_be_relied_upon() -> None:
    columns = {"protocol": "paper", "batch_size": 32}
    good, other, worse = (
        [a_record("prepacking", comparison_id=run, created_at=f"2026-01-0{day}", seed=seed, **columns, **speedup,
                  valid=valid, invalid_reasons=None if valid else "2.0 MB of the process were swapped out"),
         *(a_record(name, comparison_id=run, created_at=f"2026-01-0{day}", seed=seed, **columns)
           for name in ("full-batching", "length-ordered"))]
        for run, day, seed, valid, speedup in (
            ("a", 1, 0, True, with_speedup(5, 3, 8)), ("b", 2, 1, True, with_speedup(9, 8, 10)),
            ("c", 3, 0, False, with_speedup(1.2, 1.1, 1.3)),
        )
    )  # fmt: skip
    section = section_of("readme_table", [*good, *other, *worse])
    assert section.claims[0].ours.startswith("5.00x [3.00, 8.00]")
    said = "of seed 0; records of seed 1 are left out here, and have to lie in a folder of their own"
    assert section.notes[-1] == said
    alone = section_of("readme_table", worse)
    assert alone.claims[0].verdict == CANNOT_TELL
    assert next(line[0] for line in alone.table.texts()) == "prepacking (INVALID)"
    assert "INVALID: prepacking: 2.0 MB of the process were swapped out" in alone.notes


def curve(dataset: str, *speedups: tuple[int, float], **of: Any) -> list[Record]:
    cut = {"wikitext512": 512, "wikitext256": 256}.get(dataset)
    found = []
    for size, value in speedups:
        run = f"{dataset}{size}{of}"
        columns = {"dataset": dataset, "dataset_max_tokens": cut, "batch_size": size, "comparison_id": run,
                   "workload_fingerprint": run, **of}  # fmt: skip
        found += [a_record("prepacking", **columns, **with_speedup(value, 0.97 * value, 1.03 * value)),
                  a_record("full-batching", **columns)]  # fmt: skip
    return found


PUBLISHED_AT_16 = {"mmlu": 3.3, "wikitext512": 2.4, "rlhf": 2.4, "samsum": 2.2, "wikitext256": 1.9, "alpaca": 1.9}


def test_growth_and_order_are_put_to_the_test() -> None:
    growing = [each for name, at in PUBLISHED_AT_16.items() for each in curve(name, (4, 1.2), (16, at))]
    growth, order = section_of("speedup_by_batch_size", growing).claims
    assert (growth.verdict, growth.ours) == (HOLDS, "mmlu: 1.20x at 4, 3.30x at 16")
    assert (order.verdict, order.ours) == (HOLDS, "rank correlation 0.97, batches of 16")
    reverse = dict(zip(PUBLISHED_AT_16, reversed(PUBLISHED_AT_16.values()), strict=True))
    growth, order = section_of(
        "speedup_by_batch_size", [each for name, at in reverse.items() for each in curve(name, (4, 3.5), (16, at))]
    ).claims
    assert (growth.verdict, order.verdict) == (FAILS, FAILS)
    growth, order = section_of("speedup_by_batch_size", curve("mmlu", (4, 1.2), (16, 3.3))).claims
    assert (growth.verdict, order.verdict) == (CANNOT_TELL, CANNOT_TELL)


def test_each_model_ranks_the_datasets_by_itself() -> None:
    """A model on which packing gains three times as much on every dataset ranks them alike all the same."""

    def gains(model: str, times: float) -> list[Record]:
        of = {"model": model, "model_hash": model, "loadbit": "4"}
        published = {name: paper.speedup(model, name, 16) or 0.0 for name in PUBLISHED_AT_16}
        return [each for name, at in published.items() for each in curve(name, (4, 0.5 * at), (16, times * at), **of)]

    small, large = gains("llama2-1.3b", 1), gains("llama2-7b", 3)
    order = section_of("speedup_by_batch_size", [*small, *large]).claims[1]
    assert order.verdict == HOLDS
    assert order.ours.count("rank correlation 1.00") == 2
    assert "Llama2-7B 4-bit, batches of 16" in order.ours


def test_packing_the_dataset_is_judged_on_the_datasets_that_the_paper_shows_it_for() -> None:
    def dataset(name: str, others: float) -> list[Record]:
        noise = np.array([[0.999], [1.0], [1.001], [1.0], [1.0005]])
        times = {"dataset-prepacking": 1.0, "prepacking": others, "full-batching": 3.0, "length-ordered": 2.0}
        columns = {"dataset": name, "comparison_id": name, "workload_fingerprint": name}
        return [a_record(method, value * noise, **columns) for method, value in times.items()]

    claimed = [*dataset("mmlu", 1.3), *dataset("alpaca", 0.97)]  # within 5 % it counts as least
    assert only_claim("dataset_level", [*claimed, *dataset("rlhf", 0.9)]).verdict == HOLDS
    alone = only_claim("dataset_level", [*dataset("mmlu", 1.3), *dataset("rlhf", 1.3)])
    assert (alone.verdict, alone.why) == (CANNOT_TELL, "not run on alpaca")
    assert only_claim("dataset_level", dataset("mmlu", 0.9)).verdict == FAILS
    assert only_claim("dataset_level", dataset("rlhf", 0.9)).verdict == "not run"
    assert "rlhf" in " ".join(section_of("dataset_level", dataset("mmlu", 1.3)).notes)


def test_a_search_that_ran_out_of_prompts_shows_what_it_found() -> None:
    def tried(method: str, *sizes: tuple[int, str]) -> list[Record]:
        return [a_record(method, batch_size=size, num_prompts=size, status=status, comparison_id=f"{method}{size}",
                         workload_fingerprint=f"{size}", memory_limit_mb=900) for size, status in sizes]  # fmt: skip

    base = tried("full-batching", (8, "ok"), (16, "oom"))
    section = section_of("largest_batch", [*base, *tried("prepacking", (8, "ok"), (64, "ok"))])
    assert (section.claims[0].verdict, section.claims[0].ours) == (HOLDS, "at least 8.0x: 64 and 8 prompts, mmlu")
    assert "no more prompts" in {cell for line in section.table.texts() for cell in line}
    near = section_of("largest_batch", [*base, *tried("prepacking", (8, "ok"), (16, "oom"))])
    assert near.claims[0].verdict == CANNOT_TELL
    less = section_of("largest_batch", [*base, *tried("prepacking", (4, "ok"), (8, "oom"))])
    assert less.claims[0].verdict == FAILS


def test_a_search_whose_last_batch_is_invalid_decides_nothing() -> None:
    def tried(method: str, *sizes: tuple[int, str], **of: Any) -> list[Record]:
        return [
            a_record(method, batch_size=size, num_prompts=size, status=status, comparison_id=f"{method}{size}",
                     workload_fingerprint=f"{size}", memory_limit_mb=900, **of)
            for size, status in sizes
        ]  # fmt: skip

    doubts = {"valid": False, "invalid_reasons": "other processes on the GPU took up to 30 MB more"}
    base = tried("full-batching", (8, "ok"), (16, "oom"))
    claim = only_claim("largest_batch", [*base, *tried("prepacking", (64, "ok"), (128, "oom"), **doubts)])
    assert (claim.verdict, claim.why) == (CANNOT_TELL, "a run that it rests on is INVALID")
    smaller = [*tried("prepacking", (8, "ok"), **doubts), *tried("prepacking", (64, "ok"), (128, "oom"))]
    assert only_claim("largest_batch", [*base, *smaller]).verdict == HOLDS


@pytest.mark.parametrize(
    ("status", "equal", "ties", "verdict", "ours"),
    [
        ("ok", 100.0, 0, HOLDS, "70 tokens compared, all equal"),
        ("ok", 83.0, 2, HOLDS, "70 tokens compared, equal but for 2 near-ties"),
        ("incorrect", 83.0, 2, FAILS, "70 tokens compared, not all equal"),
    ],
)
def test_a_continuation_may_leave_the_ordinary_one_at_a_near_tie(
    status: str, equal: float, ties: int, verdict: str, ours: str
) -> None:
    columns = {"status": status, "generated_equal_pct": equal, "verified_near_ties": ties, "generated_tokens": 70}
    claim = only_claim("generation", [a_record("prepacking", **columns)])
    assert (claim.verdict, claim.ours) == (verdict, ours)


PEAKS = {"prepacking": 150.0, "full-batching": 900.0}


@pytest.mark.parametrize(("base", "verdict"), [(400.0, HOLDS), (200.0, CANNOT_TELL), (120.0, FAILS)])
def test_memory_is_judged_without_the_fault_and_shown_with_it(base: float, verdict: str) -> None:
    columns = {"protocol": "paper", "batch_size": 64}
    rows = [a_record("prepacking", peak_memory_mb=100.0, experiment="readme_table", **columns),
            a_record("full-batching", peak_memory_mb=base, experiment="readme_table", **columns)]  # fmt: skip
    kept = {"faults": "keeps-last-batch", "experiment": "faults", "comparison_id": "kept", **columns}
    rows += [
        a_record("prepacking", peak_memory_mb=150.0, **kept),
        a_record("full-batching", peak_memory_mb=900.0, **kept),
    ]
    (claim,) = make(SECTIONS["memory_and_utilization"], rows).claims
    assert claim.verdict == verdict
    assert claim.ours.startswith(f"{base / 100:.2f}x")
    assert "6.00x with the batch before's results kept" in claim.ours
    (alone,) = make(SECTIONS["memory_and_utilization"], rows[:2]).claims
    assert "without keeps-last-batch (paper: with it)" in alone.unlike


def predicted(by_bins: float, by_slack: float, batches: int = 60) -> list[Record]:
    """Batches whose speedup follows r/k or m - L/k, as much as is said."""
    rng = np.random.default_rng(0)
    bins, slack = rng.integers(4, 13, batches), rng.uniform(200, 500, batches)
    speedup = 4 - by_bins * (bins - bins.mean()) / 8 + by_slack * (slack - slack.mean()) / 300
    columns = {"dataset": "uniform-800", "num_batches": batches}
    packed, base = a_record("prepacking", [[1.0] * batches], **columns), a_record("full-batching", [speedup], **columns)
    for record, rows in ((packed, bins), (base, [16] * batches)):
        for sample, count, extra in zip(record.samples, rows, slack, strict=True):
            sample.update(prompts=16, rows=int(count), useful_tokens=6400, computed_tokens=int(6400 + 16 * extra))
    return [packed, base]


def test_which_predictor_is_better_is_told_by_resamples() -> None:
    assert only_claim("speedup_predictors", predicted(2, 0.2)).verdict == HOLDS
    assert only_claim("speedup_predictors", predicted(0.2, 2)).verdict == FAILS
    assert only_claim("speedup_predictors", predicted(0.8, 1)).verdict == CANNOT_TELL
    of_mmlu = [*predicted(2, 0.2)]
    for record in of_mmlu:
        record.row.dataset = "mmlu"
    assert only_claim("speedup_predictors", of_mmlu).verdict == "not run"


@pytest.mark.parametrize(("seconds", "verdict"), [(1.5, HOLDS), (3.5, FAILS), (2.0, CANNOT_TELL)])
def test_whether_a_small_batch_is_free(seconds: float, verdict: str) -> None:
    def batch(size: int, value: float) -> Record:
        columns = {
            "seconds_per_batch_ci_low": 0.98 * value, "seconds_per_batch_ci_high": 1.02 * value, "dataset": "equal",
            "batch_size": size, "longest_prompt_tokens": 100, "comparison_id": f"{size}",
            "workload_fingerprint": f"{size}", "intervals_rest_on_few": True,
        }  # fmt: skip
        return a_record("full-batching", [[value]] * 6, **columns)

    claim = only_claim("batch_cost", [batch(1, 1.0), batch(4, seconds)])
    assert claim.verdict == verdict
    assert ("keeps the device busy" in claim.why) == (verdict == FAILS)
