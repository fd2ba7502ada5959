"""Speedup of single batches against m - L/k and against r/k, with regression lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas
import scipy.stats

from ... import paper
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table
from ..claims import decided, differences, not_run
from ..plots import finish_axes
from ..section import Claim
from ..select import BASE, PACKED

PLACE = 6
TITLE = "What predicts the speedup (figure of speedup against batch statistics)"
LEAD = (
    "Each point is a batch of 16: its speedup against the longest prompt less the mean one (m - L/k), and against bins "
    "over prompts (r/k), with the line of least squares and its R²."
)
PREDICTORS = {"m - L/k": "tokens", "r/k": ""}  # with their units
FEWEST_POINTS = 10
COLUMNS = (
    Column("Predictor"), Column("Batches"), Column("Slope", lambda value: f"{value:.4g}"),
    Column("Intercept", lambda value: f"{value:.3g}"), Column("R²", fixed(2)), Column("Paper: R²", fixed(2)),
)  # fmt: skip


@dataclass(frozen=True)
class Points:
    """The batches of a comparison: ``speedup`` and each predictor, a line a batch."""

    row: Row
    frame: pandas.DataFrame

    def line(self, predictor: str) -> Any:
        """The line of least squares through the speedups."""
        return scipy.stats.linregress(self.frame[predictor], self.frame["speedup"])

    def r_squared(self, predictor: str) -> float:
        """Share of the speedup's variance that a predictor explains."""
        return float(self.line(predictor).rvalue ** 2)


def select(records: Sequence[Record]) -> Points | None:
    """The comparison with most batches."""
    found = [points for record in records if (points := _points(record, records)) is not None]
    return max(found, key=lambda points: len(points.frame), default=None)


def _points(packed: Record, records: Sequence[Record]) -> Points | None:
    """The batches of prepacking beside full-batching's of the same run; None where they are none or few."""
    row = packed.row
    if (row.method, row.batch_size, row.status, row.metric) != (PACKED, 16, "ok", "prefill") or row.faults:
        return None
    beside = (each for each in records
              if each.row.comparison_id == row.comparison_id and each.row.method == BASE)  # fmt: skip
    base = next(beside, None)
    if base is None or base.row.status != "ok":
        return None
    ours, full = (record.sample_table().groupby("batch").mean() for record in (packed, base))
    frame = pandas.DataFrame({
        "speedup": full["seconds"] / ours["seconds"],
        "m - L/k": (full["computed_tokens"] - full["useful_tokens"]) / full["prompts"],
        "r/k": ours["rows"] / ours["prompts"],
    })  # fmt: skip
    return Points(row, frame) if len(frame) >= FEWEST_POINTS else None


def _published(predictor: str) -> float | None:
    return paper.find("speedup_predictors", "r_squared", predictor=predictor)


def table(found: Points | None) -> Table:
    """A row for each predictor."""
    if found is None:
        return Table()
    body = [
        {"Predictor": name, "Batches": len(found.frame), "Slope": found.line(name).slope,
         "Intercept": found.line(name).intercept, "R²": found.r_squared(name), "Paper: R²": _published(name)}
        for name in PREDICTORS
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[found.row.run_id]] * len(body))


def claims(found: Points | None) -> list[Claim]:
    """Which predictor explains more."""
    text, published = "Bins over prompts (r/k) predict the speedup better than m - L/k", "R² 0.92 against 0.72"
    if found is None:
        return [not_run(text, published)]
    bins, slack = found.r_squared("r/k"), found.r_squared("m - L/k")
    return [decided(text, published, f"R² {bins:.2f} against {slack:.2f}", bins > slack, differences(found.row))]


def figure(found: Points | None) -> Any:
    """The points and the line of each predictor."""
    assert found is not None
    drawn, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for panel, (name, unit) in zip(panels, PREDICTORS.items(), strict=True):
        line, x = found.line(name), found.frame[name]
        ends = np.array([x.min(), x.max()])
        panel.scatter(x, found.frame["speedup"], s=14, color="#0072B2", alpha=0.7)
        panel.plot(ends, line.intercept + line.slope * ends, color="#D55E00", linewidth=1.4)
        panel.set_xlabel(f"{name} ({unit})" if unit else name)
        theirs = _published(name) or float("nan")
        panel.set_title(f"R² = {found.r_squared(name):.2f} (paper: {theirs:.2f})", fontsize=9)
        finish_axes(panel)
    panels[0].set_ylabel("speedup of a batch over full-batching")
    return drawn
