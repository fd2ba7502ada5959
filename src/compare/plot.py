"""The plot of a comparison: each method's time against the reference's, and its speedup over full-batching."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import stats
from ..prefilling.methods import BASELINE
from ..report.plots import finish, finish_axes, plt
from ..report.words import label
from .pairs import Pair
from .sources import Measurement, Source

# Of A, B, C, ...: Okabe and Ito's colours, and a shape each, which tells them apart in grey.
MARKS = (("o", "black"), ("s", "#0072B2"), ("^", "#D55E00"), ("D", "#009E73"), ("v", "#CC79A7"), ("P", "#E69F00"),
         ("X", "#56B4E9"))  # fmt: skip
# Possible ticks, in the order of preference.
TICKS = (1, 2, 0.5, 5, 0.2, 10, 0.1, 20, 0.05, 50, 0.02, 100, 0.01, 1.5, 0.7, 3, 0.3, 1.25, 0.8, 1.1, 0.9)
APART = 0.08  # share of the axis that ticks are apart at least, so that their labels do not run into each other
MOST = 40  # most comparisons in one figure
BEYOND = (
    3.0  # an interval is drawn up to this many times the values, so that a very wide one does not flatten the others
)


def draw(
    groups: Sequence[Sequence[Pair]], sources: Sequence[Source], title: Sequence[str], noise_floor: float, path: Path
) -> list[Path]:
    """Write the plot as PNG and SVG: a line of two panels for each comparison, a mark for each source in it.

    Args:
        groups: pairs of each comparison, those of one method side by side; ``title`` names each comparison.
    """
    whole, groups = len(groups), groups[:MOST]
    heights = [0.3 * sum(1 + len(pairs) for pairs in _methods(group).values()) + 0.9 for group in groups] or [1.5]
    figure, grid = plt.subplots(
        len(heights), 2, figsize=(12, sum(heights) + 0.8), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights, "width_ratios": (1, 1)},
    )  # fmt: skip
    letters = [source.letter for source in sources]
    for (left, right), group, name in zip(grid, groups, title, strict=False):
        _panel(left, group, letters, noise_floor, speedups=False)
        _panel(right, group, letters, noise_floor, speedups=True)
        left.set_title("\n".join(textwrap.wrap(name, 88)), fontsize=9, loc="left")
    if groups:
        grid[-1][0].set_xlabel("A's time per batch / the source's (ratio; right of 1: faster than A), 95 % interval")
        grid[-1][1].set_xlabel("Speedup over full-batching in the same source (ratio), 95 % interval")
    else:
        for axes in grid.flat:
            axes.set_axis_off()
        grid[0][0].text(0, 0.5, "Nothing could be compared: comparison.md says why.", va="center")
    handles = [
        plt.Line2D([], [], linestyle="", marker=marker, color=color, label=f"{each.letter}: {_what(each)}")
        for each, (marker, color) in zip(sources, _marks(len(sources)), strict=True)
    ]
    handles.append(
        plt.Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color="black",
            markerfacecolor="white",
            label="hollow: INVALID; grey: noise floor; arrow: goes on",
        )
    )
    if whole > MOST:
        more = f"the first {MOST} of {whole} comparisons; comparison.md has all"
        handles.append(plt.Line2D([], [], linestyle="", label=more))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return finish(figure, path)


def _what(source: Source) -> str:
    return textwrap.shorten(f"{source.facts['Device']} ({Path(source.name).name})", 70, placeholder="…")


def _marks(count: int) -> list[tuple[str, str]]:
    return [MARKS[place % len(MARKS)] for place in range(count)]


def _methods(group: Sequence[Pair]) -> dict[tuple[object, ...], list[Pair]]:
    found: dict[tuple[object, ...], list[Pair]] = {}
    for pair in group:
        found.setdefault(pair.reference.key, []).append(pair)
    return found


def _panel(axes: Any, group: Sequence[Pair], letters: Sequence[str], noise_floor: float, speedups: bool) -> None:
    """A block of lines for each method, one per source."""
    marks = dict(zip(letters, _marks(len(letters)), strict=True))
    lines: list[tuple[float, str, Measurement, stats.Interval | None]] = []
    ticks: dict[float, str] = {}
    for pairs in _methods(group).values():
        first, start = pairs[0], lines[-1][0] + 1.6 if lines else 0.0
        itself = None if first.reference.seconds is None else stats.Interval(1.0, math.nan, math.nan)
        block = [("A", first.reference, first.speedups[0] if speedups else itself)]
        block += [(pair.source.letter, pair.other, pair.speedups[1] if speedups else pair.ratio) for pair in pairs]
        lines += [(start + offset, *line) for offset, line in enumerate(block)]
        ticks[start + (len(block) - 1) / 2] = label(first.row)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8, zorder=0)
    if not speedups and noise_floor:
        axes.axvspan(1 - noise_floor, 1 + noise_floor, color="0.85", zorder=-1)
    known = [found for *_, found in lines if found is not None]
    values = [1.0, *(found.value for found in known)]
    lowest = max(min([0.9, *(found.low * 0.95 for found in known if found.low > 0)]), min(values) / BEYOND)
    highest = min(max([1.1, *(found.high * 1.05 for found in known if found.high > 0)]), max(values) * BEYOND)
    axes.set_xlim(min(lowest, min(values) * 0.95), max(highest, max(values) * 1.05))
    for place, letter, measurement, found in lines:
        _line(axes, place, measurement, found, *marks[letter], BASELINE if speedups else "")
    shown = _ticks(*axes.get_xlim())
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_yticks(list(ticks), [] if speedups else ticks.values())
    axes.set_ylim((lines[-1][0] if lines else 0) + 0.7, -0.7)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    finish_axes(axes)


def _line(
    axes: Any,
    place: float,
    measurement: Measurement,
    found: stats.Interval | None,
    marker: str,
    color: str,
    baseline: str,
) -> None:
    """A mark with its interval and value; what failed or is not known, in words."""
    if measurement.seconds is None:
        status = measurement.row.status if measurement.row.status != "ok" else "no time"
        _write(axes, status, place, color="#B00020", transform=axes.transData)
    elif found is None:
        _write(axes, "the baseline" if measurement.row.method == baseline else "not known", place, color="0.45",
               transform=axes.transData)  # fmt: skip
    else:
        if math.isfinite(found.low):
            axes.hlines(place, found.low, found.high, color=color, linewidth=1.4)
            axes.plot([found.low, found.high], [place] * 2, "|", color=color, markersize=8)
            for end, shape, cut in zip(axes.get_xlim(), "<>", _cut(axes, found), strict=True):
                if cut:
                    axes.plot(end, place, shape, color=color, markersize=6, clip_on=False)
        face = "white" if measurement.row.valid is False else color
        axes.plot(found.value, place, marker, color=color, markerfacecolor=face, markersize=6)
        interval = "" if math.isfinite(found.low) or (baseline == "" and found.value == 1) else " (no interval)"
        _write(axes, f"{found.value:.2f}x{interval}", place, color="black", transform=axes.get_yaxis_transform())


def _cut(axes: Any, found: stats.Interval) -> tuple[bool, bool]:
    """Whether an interval goes on to the left or the right of the axis."""
    lowest, highest = axes.get_xlim()
    return found.low < lowest, found.high > highest


def _write(axes: Any, text: str, place: float, color: str, transform: Any) -> None:
    axes.annotate(text, (1, place), xycoords=transform, xytext=(6, 0), textcoords="offset points", va="center",
                  fontsize=9, color=color)  # fmt: skip


def _ticks(lowest: float, highest: float) -> list[float]:
    chosen: list[float] = []
    least = APART * math.log(highest / lowest)
    for tick in TICKS:
        if lowest <= tick <= highest and all(abs(math.log(tick / other)) >= least for other in chosen):
            chosen.append(tick)
    return chosen
