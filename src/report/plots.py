"""The plots of a comparison: time per batch by method, and the lengths of the prompts."""

from __future__ import annotations

import math
import textwrap
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .. import paper
from ..interval import Interval
from ..prefilling.methods import BASELINE, method_of
from ..records.row import Row
from ..records.store import Record
from .cells import significant, tells
from .comparison import per_prompt
from .words import UNITS, label, model_name, title


class Styles(dict[str, dict[str, Any]]):
    """How each method is drawn: one with an attention kernel of its own dotted, methods that were added in grey."""

    def __missing__(self, name: str) -> dict[str, Any]:
        return {"color": self.get(name.partition("+")[0], {"color": "#999999"})["color"], "hatch": "oo"}


# Okabe and Ito's colours, which colour-blind readers can tell apart; hatches tell them apart in grey.
STYLE = Styles({
    "prepacking": {"color": "#0072B2", "hatch": ""},
    "full-batching": {"color": "#E69F00", "hatch": "//"},
    "length-ordered": {"color": "#009E73", "hatch": ".."},
    "padding-free": {"color": "#56B4E9", "hatch": "\\\\"},
    "dataset-prepacking": {"color": "#CC79A7", "hatch": "xx"},
    "continuous-batching": {"color": "#D55E00", "hatch": "--"},
    "vllm": {"color": "#F0E442", "hatch": "++"},
})  # fmt: skip
DATASETS = paper.DATASETS
MARKERS = dict(zip(DATASETS, "osD^vP", strict=True))
COLORS = dict(zip(DATASETS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"), strict=True))
FORMATS = ("png", "svg")
DPI = 150
COLUMNS = 3  # of a grid of many panels, so that a picture of a dozen still fits a screen or two
NO_INTERVAL, GOES_ON = "○: no interval", "arrow: the interval goes on"
# The intervals of each panel. They are marked when the panel is finished, because only then its limits are known.
_WHISKERS: weakref.WeakKeyDictionary[Axes, list[Whisker]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Whisker:
    """A value with its interval, upright or across; ``low`` and ``high`` are None where there is none to show."""

    place: float
    value: float
    low: float | None
    high: float | None
    across: bool
    color: str


def time_per_batch(groups: Sequence[Sequence[Record]], path: Path) -> list[Path]:
    """Mean seconds per batch of each method with 95 % intervals, a panel for each comparison."""
    columns = min(2 if len(groups) <= 6 else COLUMNS, len(groups))
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
        mean = row.seconds_per_batch_mean
        # Seconds of a batch of bins cannot be compared with those of other batches.
        if method_of(row.method).packs_dataset:
            text = f"batches of its own: {significant(per_prompt(row) or 0)} ms a prompt"
            axes.annotate(text, (0, place), xytext=(6, 0),
                          textcoords="offset points", va="center", color="#555555")  # fmt: skip
            continue
        axes.barh(place, mean, edgecolor="black", linewidth=0.6, height=0.62, **STYLE[row.method])
        whisker(axes, place, row.interval("seconds_per_batch_mean"), across=True)
        faster = row.speedup_over_full_batching
        text = f"{mean:.3g} s" + (f"  ({faster:.2f}x)" if faster and row.method != BASELINE else "")
        axes.annotate(text, (mean, place), xytext=(6, 9), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    drawn = [row for row in rows if not method_of(row.method).packs_dataset]
    axes.set_xlim(0, room(row.interval("seconds_per_batch_mean") for row in drawn))
    axes.set_xlabel(f"{UNITS[rows[0].metric]} seconds per batch (mean, 95 % interval)")
    axes.set_title("\n".join(textwrap.wrap(title(rows[0]).replace(" cores", "\u00a0cores"), 66)), fontsize=8)
    finish_axes(axes)


def titled(rows: Iterable[Row], *more: str) -> str:
    """What a panel of these rows is of, the same facts in the same order wherever panels say it.

    What differs within the panel is left to its axis or its legend. ``more`` stands behind.
    """
    rows = list(rows)
    facts: tuple[Callable[[Row], str], ...] = (
        lambda row: UNITS[row.metric],
        lambda row: row.dataset,
        model_name,
        lambda row: row.dtype,
        lambda row: f"batches of {row.batch_size}",
        lambda row: f"protocol {row.protocol}",
    )
    told = [{fact(row) for row in rows} for fact in facts]
    return ", ".join([*(next(iter(values)) for values in told if len(values) == 1), *more])


def bars(panel: Any, rows: Sequence[Row]) -> None:
    """Horizontal bars of seconds per batch with their 95 % intervals; failures by name. The panel is to be finished."""
    for place, row in enumerate(rows):
        if row.seconds_per_batch_mean is None:
            panel.annotate(row.status, (0, place), va="center", color="#B00020")
            continue
        panel.barh(place, row.seconds_per_batch_mean, 0.6, edgecolor="black", linewidth=0.6, **STYLE[row.method])
        whisker(panel, place, row.interval("seconds_per_batch_mean"), across=True)
    panel.set_yticks(range(len(rows)), [label(row) for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(0, room(row.interval("seconds_per_batch_mean") for row in rows))


def grouped_bars(
    panel: Axes, groups: Sequence[Mapping[str, Row]], methods: Sequence[str], column: str
) -> Iterator[tuple[float, Row]]:
    """Vertical bars of a column, a group of all methods after another; failures by name. Gives each place and row."""
    step = 0.81 / len(methods)
    for place, method in enumerate(methods):
        for number, group in enumerate(groups):
            row, x = group.get(method), number + step * (place - (len(methods) - 1) / 2)
            if row is None:
                continue
            if row.status != "ok":
                panel.annotate(row.status, (x, 0), rotation=90, ha="center", va="bottom", color="#B00020", fontsize=8)
            if getattr(row, column) is None:
                continue
            panel.bar(x, getattr(row, column), 0.93 * step, edgecolor="black", linewidth=0.5, **STYLE[method])
            yield x, row


def legend(figure: Figure, methods: Iterable[str]) -> None:
    """One legend above all panels, of every method that any of them has, failed ones too."""
    names = list(dict.fromkeys(methods))
    handles = [
        Patch(edgecolor="black", linewidth=0.5, label=name, facecolor=STYLE[name]["color"], hatch=STYLE[name]["hatch"])
        for name in names
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=max(1, min(len(names), 7)), frameon=False, fontsize=8
    )


def whisker(panel: Any, place: float, found: Interval | None, across: bool = False, color: str = "black") -> None:
    """A 95 % interval about its value, upright or across; ``finish_axes`` marks one that is missing or goes on."""
    if found is None:
        return
    value, low, high = found.value, found.low, found.high
    if not tells(low, high):
        _WHISKERS.setdefault(panel, []).append(Whisker(place, value, None, None, across, color))
        return
    _WHISKERS.setdefault(panel, []).append(Whisker(place, value, low, high, across, color))
    ends = [[max(0, value - low)], [max(0, high - value)]]
    at, error = ((value, place), {"xerr": ends}) if across else ((place, value), {"yerr": ends})
    panel.errorbar(*at, **error, color=color, capsize=2.5, linewidth=1)


def room(found: Iterable[Interval | None]) -> float:
    """How far an axis reaches: to the ends of the intervals, but to twice the largest value at most."""
    known = [each for each in found if each is not None]
    largest = max((each.value for each in known), default=0.0)
    farthest = max((each.high for each in known if not math.isnan(each.high)), default=0.0)
    return 1.35 * min(max(largest, farthest), 1.5 * largest) or 1.0


def finish_axes(panel: Axes) -> None:
    """No frame above and on the right; marks where an interval is missing or goes on, explained below the figure.

    To be called once a panel has its limits. Without the marks a value of which no interval is known would look the
    most certain, and a cut interval like one that ends there.
    """
    panel.spines[["top", "right"]].set_visible(False)
    for each in _WHISKERS.get(panel, []):
        if not math.isfinite(each.value):
            continue
        first, last = panel.get_xlim() if each.across else panel.get_ylim()
        marks = []
        if each.low is None or each.high is None:
            marks.append((each.value, "o", "white"))
            _explain(panel, NO_INTERVAL)
        else:
            shapes = "<>" if each.across else "v^"
            beyond = ((each.low < first, first, shapes[0]), (each.high > last, last, shapes[1]))
            marks += [(end, shape, each.color) for cut, end, shape in beyond if cut]
            if marks:
                _explain(panel, GOES_ON)
        for at, shape, face in marks:
            x, y = (at, each.place) if each.across else (each.place, at)
            panel.plot(x, y, shape, color=each.color, markerfacecolor=face, markersize=4.5, clip_on=False, zorder=5)


def _explain(panel: Axes, mark: str) -> None:
    """A line below the figure, once for all of its panels."""
    figure: Any = panel.get_figure()
    there = figure.get_supxlabel()
    said = [each for each in (NO_INTERVAL, GOES_ON) if each in (*there.split("; "), mark)]
    figure.supxlabel("; ".join(said), fontsize=8, color="#555555")


def prompt_lengths(groups: Sequence[Sequence[Record]], path: Path) -> list[Path]:
    """Histogram of prompt lengths, a panel for each dataset: of its largest workload. No files where none is known.

    A record of what failed before its prompts were read has no lengths.
    """
    known = [group[0] for group in groups if group[0].prompt_lengths]
    if not known:
        return []
    by_size = sorted(known, key=lambda record: record.row.num_prompts)
    workloads = {(record.row.dataset, record.row.dataset_detail): record for record in by_size}
    columns = min(COLUMNS, len(workloads))
    lines = -(-len(workloads) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5 * columns if columns > 1 else 7, 2.6 * lines), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(workloads) :]:
        axes.set_axis_off()
    for axes, record in zip(grid.flat, workloads.values(), strict=False):
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
        axes.set_title(f"{what}, {len(lengths):,} prompts,\nlongest {lengths.max():,} tokens", fontsize=9)
        axes.legend(frameon=False)
        finish_axes(axes)
    return finish(figure, path)


def save(figure: Figure, path: Path) -> list[Path]:
    """PNG to look at and SVG to print; without a date, so that equal results give equal files."""
    figure.set_dpi(DPI)  # the width of text depends on it
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep this layout: laying it out again for every file takes long
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
