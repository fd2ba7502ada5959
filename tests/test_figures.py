"""Tables and figures: what is marked, what is explained, and what is not set beside what it cannot be compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src import stats
from src.compare import plot as compare_plot
from src.compare.sources import Measurement
from src.records.row import Row
from src.records.store import Record
from src.report import methods_as_ratios, plots
from src.report.build import report_on
from src.report.cells import estimate
from src.report.comparison import comparison_table
from src.report.sections import dataset_level
from src.report.words import title

Measure = Callable[..., list[Record]]
NAN = float("nan")


def a_row(method: str, **changes: Any) -> Row:
    row = Row(method=method, status="ok", metric="ttft", protocol="modern", dataset="mmlu", model="tiny",
              dtype="float32", loadbit="none", batch_size=8, num_prompts=16, device_name="a CPU",
              dataset_source="profile",
              seconds_per_batch_mean=1.0, seconds_per_batch_ci_low=0.9, seconds_per_batch_ci_high=1.2,
              seconds_per_prompt_mean=0.125)  # fmt: skip
    for name, value in changes.items():
        setattr(row, name, value)
    return row


def marks_of(panel: Any) -> list[tuple[str, float, float]]:
    """The marks that say that an interval is missing or goes on, with their places."""
    lines = [line for line in panel.lines if line.get_marker() in set("o<>v^")]
    return [(line.get_marker(), line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def test_an_interval_that_is_cut_or_missing_is_marked_and_explained_once() -> None:
    """A bar without an interval looked the most certain, and one that was cut as if it ended there."""
    figure, (panel, other) = plots.plt.subplots(1, 2)
    for one in (panel, other):
        plots.whisker(one, 0, stats.Interval(1.0, 0.5, 9.0))
        plots.whisker(one, 1, stats.Interval(1.0, NAN, NAN))
        plots.whisker(one, 2, stats.Interval(1.0, 0.001, 5.0))  # too wide to tell anything
        plots.whisker(one, 3, stats.Interval(1.0, 0.9, 1.1))
        plots.whisker(one, 4, None)
        one.set_ylim(0, 2)
        plots.finish_axes(one)
    assert marks_of(panel) == [("^", 0, 2), ("o", 1, 1), ("o", 2, 1)]
    assert figure.get_supxlabel() == "○: no interval; arrow: the interval goes on"
    plots.plt.close(figure)
    figure, panel = plots.plt.subplots()
    plots.whisker(panel, 0, stats.Interval(5.0, 1.0, 6.0), across=True)
    panel.set_xlim(2, 10)
    plots.finish_axes(panel)
    assert marks_of(panel) == [("<", 2, 0)]
    plots.plt.close(figure)


def test_a_comparisons_plot_marks_what_it_cuts(tmp_path: Path) -> None:
    figure, axes = plots.plt.subplots()
    axes.set_xscale("log")
    axes.set_xlim(0.5, 2)
    entry = Measurement(a_row("prepacking"))
    compare_plot._line(axes, 0, entry, stats.Interval(1.5, 1.2, 9.0), "o", "black", "")
    compare_plot._line(axes, 1, entry, stats.Interval(1.5, float("nan"), float("nan")), "s", "black", "")
    assert (">", 2, 0) in marks_of(axes)
    assert any(text.get_text() == "1.50x (no interval)" for text in axes.texts)
    plots.plt.close(figure)


def test_a_legend_has_every_method_failed_ones_and_those_of_other_panels_too() -> None:
    rows = {
        8: {name: a_row(name, fraction_of_ideal=0.5) for name in ("prepacking", "full-batching")},
        16: {"full-batching": a_row("full-batching", batch_size=16),
             "vllm": a_row("vllm", status="oom", seconds_per_batch_mean=None, batch_size=16)},
    }  # fmt: skip
    others = {name: a_row(name, forward="transformers") for name in ("full-batching", "length-ordered")}
    figure = methods_as_ratios.figure([*rows.values(), others])
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["prepacking", "full-batching", "length-ordered", "vllm"]
    titles = [panel.get_title(loc="left") for panel in figure.axes if panel.get_title(loc="left")]
    assert titles == [
        "TTFT, mmlu, tiny, float32, protocol modern, prompts of up to 0 tokens",
        "TTFT, mmlu, tiny, float32, batches of 8, protocol modern, prompts of up to 0 tokens, forward of transformers",
    ]
    plots.plt.close(figure)


def test_panels_tell_the_same_facts_in_the_same_order() -> None:
    rows = [a_row("prepacking"), a_row("full-batching", dataset="alpaca")]
    assert plots.titled(rows) == "TTFT, tiny, float32, batches of 8, protocol modern"
    assert plots.titled([a_row("prepacking", model="llama2-7b", loadbit="4")], "more") == (
        "TTFT, mmlu, Llama2-7B 4-bit, float32, batches of 8, protocol modern, more"
    )


def test_many_datasets_make_no_endless_picture(tmp_path: Path) -> None:
    groups = [
        [Record(a_row("prepacking", dataset=f"set {n}", dataset_detail=f"{n}"), {}, {}, [], [3, 5, 9])]
        for n in range(10)
    ]
    plots.prompt_lengths(groups, tmp_path / "lengths")
    plots.time_per_batch(groups * 2, tmp_path / "times")
    for name in ("lengths", "times"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.height < 1.7 * image.width
            assert image.height <= (1600 if name == "lengths" else 3600)


def test_a_batch_of_bins_is_not_drawn_beside_the_others() -> None:
    figure, axes = plots.plt.subplots()
    rows = [a_row("prepacking"), a_row("dataset-prepacking", seconds_per_batch_mean=50.0, seconds_per_prompt_mean=0.1)]
    plots._bars(axes, rows)
    assert len(axes.patches) == 1
    assert any("batches of its own: 100 ms a prompt" in text.get_text() for text in axes.texts)
    assert axes.get_xlim()[1] < 10
    plots.plt.close(figure)


def test_tables_compare_by_the_prompt_where_batches_differ() -> None:
    rows = [
        a_row("full-batching", speedup_over_full_batching=1.0),
        a_row("dataset-prepacking", seconds_per_prompt_mean=0.1),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in comparison_table(rows).splitlines()]
    time, prompt = lines[0].index("Avg TTFT time /batch (s)"), lines[0].index("s / prompt, std over repeats")
    assert [(line[time], line[prompt]) for line in lines[2:4]] == [("1.000", "0.12500"), ("n/a", "0.10000")]
    assert (
        "- dataset-prepacking has batches of its own, bins of all prompts: compare it by the prompt"
        in comparison_table(rows)
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.757, 0.7568, 0.7577, "0.757 [0.757, 0.758]"),
        (0.81, 0.63, 1.04, "0.81 [0.63, 1.04]"),
        (0.76, 0.76, 0.76, "0.76 [0.76, 0.76]"),  # of a value that only takes steps
        (0.76, None, None, "0.76 (no interval)"),
        (0.76, 0.01, 5.0, "0.76 (no interval)"),
        (0.123456, 0.1234561, 0.1234589, "0.123456 [0.123456, 0.123459]"),
    ],
)
def test_an_interval_is_shown_with_the_digits_that_tell_its_ends_apart(
    value: float, low: float | None, high: float | None, shown: str
) -> None:
    ends = (NAN, NAN) if low is None or high is None else (low, high)
    assert estimate()(stats.Interval(value, *ends)) == shown


def test_no_line_below_a_table_begins_with_a_sign_that_markdown_takes(measure: Measure, tmp_path: Path) -> None:
    measure("methods=[full-batching,length-ordered,dataset-prepacking]")
    text = report_on(tmp_path / "results").files[0].read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith(("* ", "+ ", "> "))] == []
    assert "\n- marked *: an offline oracle" in text


@pytest.mark.parametrize(("profile", "kind"), [("mmlu", "real"), ("equal", "made-up"), ("lengths", "given")])
def test_a_title_says_whose_token_lengths_they_are(profile: str, kind: str) -> None:
    assert f"({kind} token lengths, random ids)" in title(
        a_row("prepacking", dataset_detail=f"profile {profile} sha256:0")
    )


def test_a_tolerance_is_told() -> None:
    assert "as within 5 % it counts as least" in dataset_level.claims({})[0].rule
