"""The plots of a comparison: time per batch by method, and the lengths of the prompts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
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
from src.report.tables import UNITS, label, title

# Okabe and Ito's colours, which colour-blind readers can tell apart; hatches tell them apart in grey.
STYLE: dict[str, dict[str, Any]] = {
    "prepacking": {"color": "#0072B2", "hatch": ""},
    "full-batching": {"color": "#E69F00", "hatch": "//"},
    "length-ordered": {"color": "#009E73", "hatch": ".."},
    "padding-free": {"color": "#56B4E9", "hatch": "\\\\"},
    "dataset-prepacking": {"color": "#CC79A7", "hatch": "xx"},
    "continuous-batching": {"color": "#D55E00", "hatch": "--"},
    "vllm": {"color": "#F0E442", "hatch": "++"},
}
FORMATS = ("png", "svg")


def time_per_batch(groups: Sequence[Sequence[Record]], path: Path) -> list[Path]:
    """Mean seconds per batch of each method with 95 % intervals, a panel for each comparison."""
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(6 * columns, 3.4 * lines), squeeze=False, layout="constrained")
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    for axes, group in zip(grid.flat, groups, strict=False):
        _bars(axes, [record.row for record in group])
    return _save(figure, path)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if row.status != "ok" or row.seconds_per_batch_mean is None:
            axes.annotate(
                row.status, (0, place), xytext=(6, 0), textcoords="offset points", va="center", color="#B00020"
            )
            continue
        mean, low, high = row.seconds_per_batch_mean, row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high
        axes.barh(place, mean, edgecolor="black", linewidth=0.6, height=0.62, **STYLE[row.method])
        if low is not None and high is not None:
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black", capsize=4, linewidth=1.2)
        faster = row.speedup_over_full_batching
        text = f"{mean:.3g} s" + (f"  ({faster:.2f}x)" if faster and row.method != "full-batching" else "")
        axes.annotate(text, (max(mean, high or 0), place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    ends = [row.seconds_per_batch_ci_high or row.seconds_per_batch_mean or 0.0 for row in rows]
    axes.set_xlim(0, 1.35 * max(ends) or 1)
    axes.set_xlabel(f"{UNITS[rows[0].metric]} seconds per batch (mean, 95 % interval)")
    axes.set_title("\n".join(textwrap.wrap(title(rows[0]).replace(" cores", "\u00a0cores"), 66)), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def prompt_lengths(groups: Sequence[Sequence[Record]], path: Path) -> list[Path]:
    """Histogram of prompt lengths, a panel for each workload."""
    workloads = {group[0].row.workload_fingerprint: group[0] for group in groups}
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
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> list[Path]:
    written = save(figure, path)
    plt.close(figure)
    return written


def save(figure: Figure, path: Path) -> list[Path]:
    """PNG to look at and SVG to print; without a date, so that equal results give equal files."""
    written = []
    for kind in FORMATS:
        target = path.with_suffix(f".{kind}")
        with matplotlib.rc_context({"svg.hashsalt": "prepack-bench"}):
            figure.savefig(target, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
        written.append(target)
    return written
