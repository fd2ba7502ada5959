"""The plots of a comparison: time per batch by method, and the lengths of the prompts."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.measure.records import Record
from src.measure.row import Row
from src.report.tables import UNITS, label, tells, title

# Okabe and Ito's colours, which colour-blind readers can tell apart; hatches tell them apart in grey.
# Methods that were added are grey.
STYLE: dict[str, dict[str, Any]] = defaultdict(lambda: {"color": "#999999", "hatch": "oo"}) | {
    "prepacking": {"color": "#0072B2", "hatch": ""},
    "full-batching": {"color": "#E69F00", "hatch": "//"},
    "length-ordered": {"color": "#009E73", "hatch": ".."},
    "padding-free": {"color": "#56B4E9", "hatch": "\\\\"},
    "dataset-prepacking": {"color": "#CC79A7", "hatch": "xx"},
    "continuous-batching": {"color": "#D55E00", "hatch": "--"},
    "vllm": {"color": "#F0E442", "hatch": "++"},
}
DATASETS = ("mmlu", "wikitext512", "alpaca", "samsum", "rlhf", "wikitext256")
MARKERS = dict(zip(DATASETS, "osD^vP", strict=True))
COLORS = dict(zip(DATASETS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"), strict=True))
FORMATS = ("png", "svg")
DPI = 150


def time_per_batch(groups: Sequence[Sequence[Record]], path: Path) -> list[Path]:
    """Mean seconds per batch of each method with 95 % intervals, a panel for each comparison."""
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(6 * columns, 3.4 * lines), squeeze=False, layout="constrained")
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    for axes, group in zip(grid.flat, groups, strict=False):
        _bars(axes, [record.row for record in group])
    return finish(figure, path)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if row.status != "ok" or row.seconds_per_batch_mean is None:
            axes.annotate(
                row.status, (0, place), xytext=(6, 0), textcoords="offset points", va="center", color="#B00020"
            )
            continue
        mean, low, high = row.seconds_per_batch_mean, row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high
        axes.barh(place, mean, edgecolor="black", linewidth=0.6, height=0.62, **STYLE[row.method])
        whisker(axes, place, mean, low, high, across=True)
        faster = row.speedup_over_full_batching
        text = f"{mean:.3g} s" + (f"  ({faster:.2f}x)" if faster and row.method != "full-batching" else "")
        axes.annotate(text, (mean, place), xytext=(6, 9), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(
        0, room([row.seconds_per_batch_mean for row in rows], [row.seconds_per_batch_ci_high for row in rows])
    )
    axes.set_xlabel(f"{UNITS[rows[0].metric]} seconds per batch (mean, 95 % interval)")
    axes.set_title("\n".join(textwrap.wrap(title(rows[0]).replace(" cores", "\u00a0cores"), 66)), fontsize=8)
    clear_axes(axes)


def bars(panel: Any, rows: Sequence[Row]) -> None:
    """Horizontal bars of seconds per batch with their 95 % intervals; failures by name."""
    for place, row in enumerate(rows):
        if row.seconds_per_batch_mean is None:
            panel.annotate(row.status, (0, place), va="center", color="#B00020")
            continue
        panel.barh(place, row.seconds_per_batch_mean, 0.6, edgecolor="black", linewidth=0.6, **STYLE[row.method])
        low, high = row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high
        whisker(panel, place, row.seconds_per_batch_mean, low, high, across=True)
    panel.set_yticks(range(len(rows)), [label(row) for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(
        0, room([row.seconds_per_batch_mean for row in rows], [row.seconds_per_batch_ci_high for row in rows])
    )
    clear_axes(panel)


def grouped_bars(
    panel: Axes, groups: Sequence[Mapping[str, Row]], methods: Sequence[str], column: str
) -> Iterator[tuple[float, Row]]:
    """Vertical bars of a column, a group of all methods after another; failures by name. Gives each place and row."""
    step, named = 0.81 / len(methods), set()
    for place, method in enumerate(methods):
        for number, group in enumerate(groups):
            row, x = group.get(method), number + step * (place - (len(methods) - 1) / 2)
            if row is None:
                continue
            if row.status != "ok":
                panel.annotate(row.status, (x, 0), rotation=90, ha="center", va="bottom", color="#B00020", fontsize=8)
            if getattr(row, column) is None:
                continue
            panel.bar(x, getattr(row, column), 0.93 * step, edgecolor="black", linewidth=0.5,
                      label=None if method in named else method, **STYLE[method])  # fmt: skip
            named.add(method)
            yield x, row


def whisker(
    panel: Any, place: float, value: float, low: float | None, high: float | None, across: bool = False,
    color: str = "black",
) -> None:  # fmt: skip
    """A 95 % interval about a value, upright or across, where there is one that tells anything."""
    if low is None or high is None or not tells(low, high):
        return
    ends = [[max(0, value - low)], [max(0, high - value)]]
    at, error = ((value, place), {"xerr": ends}) if across else ((place, value), {"yerr": ends})
    panel.errorbar(*at, **error, color=color, capsize=2.5, linewidth=1)


def room(values: Sequence[float | None], ends: Sequence[float | None]) -> float:
    """How far an axis reaches: to the ends of intervals, but to twice the largest value at most."""
    largest = max((value for value in values if value is not None), default=0.0)
    farthest = max((end for end in ends if end is not None), default=0.0)
    return 1.35 * min(max(largest, farthest), 1.5 * largest) or 1.0


def clear_axes(panel: Axes) -> None:
    """No frame above and on the right."""
    panel.spines[["top", "right"]].set_visible(False)


def prompt_lengths(groups: Sequence[Sequence[Record]], path: Path) -> list[Path]:
    """Histogram of prompt lengths, a panel for each dataset: of its largest workload."""
    by_size = sorted((group[0] for group in groups), key=lambda record: record.row.num_prompts)
    workloads = {(record.row.dataset, record.row.dataset_detail): record for record in by_size}
    figure, grid = plt.subplots(
        len(workloads), 1, figsize=(7, 3.2 * len(workloads)), squeeze=False, layout="constrained"
    )
    for axes, record in zip(grid.flat, workloads.values(), strict=True):
        lengths = np.array(record.prompt_lengths)
        axes.hist(
            lengths,
            bins=min(40, max(5, int(lengths.max() - lengths.min()))),
            color="#56B4E9",
            edgecolor="black",
            linewidth=0.4,
        )
        for value, name, style in ((np.median(lengths), "median", ":"), (lengths.mean(), "mean", "--")):
            axes.axvline(value, color="black", linestyle=style, label=f"{name} {value:.0f}")
        axes.set_xlabel("Prompt length (tokens)")
        axes.set_ylabel("Prompts")
        what = f"{record.row.dataset} ({record.row.dataset_source})"
        axes.set_title(f"{what}, {len(lengths):,} prompts, longest {lengths.max():,} tokens", fontsize=9)
        axes.legend(frameon=False)
        clear_axes(axes)
    return finish(figure, path)


def save(figure: Figure, path: Path) -> list[Path]:
    """PNG to look at and SVG to print; without a date, so that equal results give equal files."""
    figure.set_dpi(DPI)  # at which text is as wide as it will be
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it stays as it is now: every file would take as long again to lay it out
    written = []
    for kind in FORMATS:
        target = path.with_suffix(f".{kind}")
        with matplotlib.rc_context({"svg.hashsalt": "prepack-bench"}):
            figure.savefig(target, dpi=DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
        written.append(target)
    return written


def finish(figure: Figure, path: Path) -> list[Path]:
    """Save a figure and give its memory back."""
    written = save(figure, path)
    plt.close(figure)
    return written
