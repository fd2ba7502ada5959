"""What was computed and what it cost: counted by hand, never less than what is useful, shown where it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import TINY, TINY_OVERRIDES, draw_prompts
from hypothesis import given
from hypothesis import strategies as st

from src.compose import compose
from src.config import Config
from src.measure import work
from src.measure.memory import Peak
from src.measure.outcome import Outcome, Pass, Run, UsageLoop
from src.measure.plan import Assignment, Plan, prepare
from src.measure.process import CpuUse
from src.measure.rates import Rates
from src.measure.sampler import Usage
from src.measure.usage import NO_FLASH, add_rates, add_usage, add_validity
from src.prefilling.methods import METHODS
from src.records.row import Row
from src.records.store import Record
from src.report import methods_as_ratios
from src.report.cells import make_table, significant
from src.report.comparison import cost_columns, costs_of, ratio_table

HIDDEN, MLP, VOCAB, LAYERS = (int(str(TINY[name])) for name in
                              ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))  # fmt: skip
KV = 2 * HIDDEN * HIDDEN // 2  # weights of keys and values, of which there are half as many heads
LAYER = 2 * HIDDEN * HIDDEN + KV + 3 * HIDDEN * MLP
HEAD = HIDDEN * VOCAB


def of_lengths(plan: Plan, lengths: list[int], method: str) -> Assignment:
    """A method on one batch of prompts of these lengths, which are the plan's then."""
    plan.prompts.token_ids[:] = draw_prompts(lengths)
    plan.shuffled[:] = [np.arange(len(lengths))]
    found = METHODS[method]
    rows = len(plan.pack(lengths, max(lengths))) if found.packs else len(lengths)
    return Assignment(found, plan.shuffled, [(rows, max(lengths))])


def test_a_padded_batch_under_the_papers_protocol(tiny_config: Callable[..., Config]) -> None:
    """Two rows of five tokens: every position to logits, every query times every key, then scores times values."""
    plan = prepare(tiny_config("protocol=paper", "num_prompts=2", "batch_size=2"))
    assignment = of_lengths(plan, [5, 3], "full-batching")
    attention = 2 * 2 * 25 * HIDDEN * LAYERS
    assert work.computed_operations(plan, assignment) == 2 * (10 * LAYERS * LAYER + attention + 10 * HEAD)


@pytest.mark.parametrize("metric", ["prefill", "ttft"])
def test_a_packed_batch_under_the_papers_protocol(metric: str, tiny_config: Callable[..., Config]) -> None:
    """Two bins, less last tokens of four and two; for first tokens the last ones go through, each seeing its prompt."""
    plan = prepare(tiny_config("protocol=paper", "num_prompts=2", "batch_size=2", f"metric={metric}"))
    assignment = of_lengths(plan, [5, 3], "prepacking")
    packed = 2 * (8 * LAYERS * LAYER + 2 * 2 * 16 * HIDDEN * LAYERS + 8 * HEAD)
    decoded = 2 * (2 * LAYERS * LAYER + 2 * (5 + 3) * HIDDEN * LAYERS + 2 * HEAD)
    assert work.computed_operations(plan, assignment) == packed + (decoded if metric == "ttft" else 0)


@pytest.mark.parametrize("forward", ["fused", "transformers"])
def test_equal_prompts_under_the_modern_protocol(forward: str, tiny_config: Callable[..., Config]) -> None:
    """Causal attention, logits at last tokens; of the last layer the fused forward computes Q, K and V everywhere."""
    plan = prepare(tiny_config(f"forward={forward}", "num_prompts=2", "batch_size=2"))
    assignment = of_lengths(plan, [3, 3], "full-batching")
    everywhere = HIDDEN * HIDDEN + KV
    linear = 6 * (LAYERS - 1) * LAYER + 6 * everywhere + (2 if forward == "fused" else 6) * (LAYER - everywhere)
    attention = 2 * 2 * 6 * HIDDEN * LAYERS  # six pairs of each prompt
    assert work.computed_operations(plan, assignment) == 2 * (linear + attention + 2 * HEAD)


def test_pairs_are_those_of_the_kernel_that_runs(tiny_config: Callable[..., Config]) -> None:
    """A dense mask computes every pair of its row, whatever lies within prompts."""
    dense = prepare(tiny_config("attention=dense", "num_prompts=2", "batch_size=2"))
    plain = prepare(tiny_config("num_prompts=2", "batch_size=2"))
    attention = 4 * HIDDEN * LAYERS
    found = {
        (name, plan is dense): work.computed_operations(plan, of_lengths(plan, [5, 3], name)) or 0.0
        for name in ("padding-free", "full-batching")
        for plan in (dense, plain)
    }
    assert found["padding-free", True] - found["padding-free", False] == (64 - 15 - 6) * attention
    assert found["full-batching", True] - found["full-batching", False] == (2 * 25 - 2 * 15) * attention


@pytest.mark.parametrize("protocol", ["modern", "paper"])
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), method=st.sampled_from(
    ["full-batching", "prepacking", "padding-free"]))  # fmt: skip
def test_nothing_computes_less_than_is_useful(protocol: str, lengths: list[int], method: str) -> None:
    plan = prepared(protocol)
    computed = work.computed_operations(plan, of_lengths(plan, lengths, method))
    assert computed is not None
    assert computed >= work.useful_operations(plan) * (1 - 1e-9)


def prepared(protocol: str, made: dict[str, Plan] = {}) -> Plan:  # noqa: B006, planned once
    if protocol not in made:
        where = f"results_dir={Path(__file__).parent / 'never-written'}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("src.records.store.check_writable", lambda _: None)
            made[protocol] = prepare(compose([*TINY_OVERRIDES, f"protocol={protocol}", "metric=ttft", where]))
    return made[protocol]


def passed(assignment: Assignment, *seconds: float) -> Outcome:
    usage: Any = None
    outcome = Outcome(assignment)
    outcome.passes = [Pass([{"seconds": each}], each, usage, Peak()) for each in seconds]
    return outcome


def of_span(seconds: float, energy_j: float | None, power_w: float) -> Usage:
    known: dict[str, Any] = {each.name: None for each in fields(Usage)}
    known |= {"windows": 5, "readings": 9, "gaps": {} if energy_j else {"energy_j": "too short"}, "source": "nvml"}
    return Usage(**known | {"seconds": seconds, "energy_j": energy_j, "mean_power_w": power_w})


def test_the_energy_of_a_pass_too_short_to_tell_it_is_by_the_power_of_the_loop(
    tiny_config: Callable[..., Config],
) -> None:
    outcome = Outcome(prepare(tiny_config()).methods[0])
    passes = [Pass([], seconds, of_span(seconds, None, 300.0), Peak()) for seconds in (0.2, 0.4)]
    outcome.loop = UsageLoop(of_span(2.0, 1200.0, 600.0), 3.0)
    row = Row()
    add_usage(row, outcome, passes)
    assert row.energy_j == pytest.approx(600 * 0.3)
    assert (row.power_mean_w, row.telemetry_gaps) == (600.0, None)  # not of what ran in the second before a short pass
    outcome.loop, row = None, Row()
    add_usage(row, outcome, passes)
    assert (row.energy_j, row.power_mean_w) == (None, 300.0)
    outcome.passes = passes
    add_usage(row, outcome, passes)
    assert row.telemetry_gaps == "energy_j: too short"
    long = [Pass([], 4.0, of_span(4.0, energy_j, 500.0), Peak()) for energy_j in (2000.0, 2200.0)]
    add_usage(row, outcome, long)
    assert row.energy_j == 2100


@pytest.mark.parametrize(
    ("attention", "dtype", "peak_mb", "noted"),
    [("paged|sdpa", "bfloat16", 1.0, True), ("paged|sdpa", "bfloat16", None, False),
     ("paged|sdpa", "float32", 1.0, False), ("paged|flash_attention_2", "bfloat16", 1.0, False)],
)  # fmt: skip
def test_an_engine_that_attends_by_its_fallback_on_a_gpu_says_so(
    attention: str, dtype: str, peak_mb: float | None, noted: bool, tiny_config: Callable[..., Config]
) -> None:
    outcome = Outcome(prepare(tiny_config()).methods[0])
    outcome.passes = [Pass([{"seconds": 1.0}], 1.0, of_span(2.0, 1200.0, 600.0), Peak())]
    row = Row(attention=attention, dtype=dtype, torch_peak_allocated_mb=peak_mb)
    add_validity(row, outcome, False, CpuUse())
    assert (NO_FLASH in str(row.notes)) == noted


def test_rates_shares_and_joules_are_those_of_a_pass(tiny_config: Callable[..., Config]) -> None:
    plan = prepare(tiny_config("num_prompts=2", "batch_size=2"))
    outcome = passed(of_lengths(plan, [5, 3], "full-batching"), 1.0, 3.0)
    run = Run(plan)
    run.rates = Rates(operations_per_s=5e12, bytes_per_s=1.0)
    row = Row(useful_tokens=8, energy_j=4.0)
    add_rates(row, run, outcome)
    assert row.useful_tflop_per_s == pytest.approx(work.useful_operations(plan) / 2.0 / 1e12)
    assert row.matmul_tflop_per_s == 5.0
    assert row.useful_share_of_rate == pytest.approx(row.useful_tflop_per_s / 5)
    assert row.computed_share_of_rate == pytest.approx((row.computed_tflop_per_s or 0) / 5)
    assert row.joules_per_1000_useful_tokens == 500
    run.rates = None
    without = Row(useful_tokens=8)
    add_rates(without, run, passed(of_lengths(plan, [5, 3], "continuous-batching"), 2.0))
    assert without.useful_tflop_per_s == pytest.approx(row.useful_tflop_per_s)
    assert (without.computed_tflop_per_s, without.matmul_tflop_per_s, without.useful_share_of_rate) == (None,) * 3
    assert without.joules_per_1000_useful_tokens is None


def test_a_measured_row_has_them(measure: Callable[..., list[Record]]) -> None:
    (record,) = measure("method=prepacking", "ideal=true")
    row = record.row
    assert row.useful_tflop_per_s
    assert row.computed_tflop_per_s
    assert row.useful_tflop_per_s <= row.computed_tflop_per_s
    assert row.matmul_tflop_per_s == pytest.approx(row.useful_tflop_per_s / (row.useful_share_of_rate or 1))


FULL = Row(
    method="full-batching", protocol="modern", metric="ttft", dataset="mmlu", batch_size=4, seconds_per_batch_mean=1.0,
    speedup_over_full_batching=1.0, useful_tflop_per_s=41.26, computed_tflop_per_s=310.0, matmul_tflop_per_s=700.0,
    useful_share_of_rate=0.059, joules_per_1000_useful_tokens=8.123,
)  # fmt: skip


def test_tables_have_cells_for_what_some_row_has() -> None:
    old = Row(method="prepacking")
    assert cost_columns([old]) == []
    columns = cost_columns([old, FULL])
    assert [column.label for column in columns] == ["Useful TFLOP/s (of rate)", "J / 1,000 useful tokens"]
    table = make_table(columns, [costs_of(FULL, columns), costs_of(old, columns)], [])
    assert table.texts() == [["41.3 (6 %)", "8.12"], ["", ""]]
    lines = ratio_table(
        [[Record(FULL, {}, {}), Record(Row(method="prepacking", protocol="modern", status="oom"), {}, {})]]
    )
    assert len({line.count("|") for line in lines.splitlines()}) == 1
    assert "41.3 (6 %)" in lines
    assert [significant(value) for value in (0.0, 0.01234, 9.996, 1234.5)] == ["0", "0.0123", "10.00", "1234"]


def test_a_figure_has_panels_for_what_some_row_has() -> None:
    bare = Row(**{**vars(FULL), "useful_tflop_per_s": None, "joules_per_1000_useful_tokens": None})
    served = Row(**{**vars(FULL), "method": "continuous-batching", "computed_tflop_per_s": None})
    for rows, panels in (([bare], 2), ([FULL, served], 4)):
        figure = methods_as_ratios.figure([{row.method: row for row in rows}])
        assert len(figure.axes) == panels
    bars = figure.axes[2].patches
    assert sorted(round(bar.get_height(), 2) for bar in bars) == [41.26, 41.26, 268.74]  # what is beyond stands on top
    assert figure.axes[2].lines[0].get_ydata()[0] == 700.0
    plt.close("all")
