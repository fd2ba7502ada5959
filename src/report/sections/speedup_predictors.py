"""Speedup of single batches against m - L/k and against r/k, with regression lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas
import scipy.stats
from numpy.typing import NDArray

from ... import paper
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table
from ..claims import INVALID, decided, not_run, unlike
from ..plots import finish_axes
from ..section import CANNOT_TELL, FAILS, HOLDS, Claim
from ..select import BASE, PACKED

PLACE = 6
TITLE = "What predicts the speedup (figure of speedup against batch statistics)"
LEAD = (
    "Each point is a batch of 16: its speedup against the longest prompt less the mean one (m - L/k), and against bins "
    "over prompts (r/k), with the line of least squares and its R². The paper's batches are those of prompts of "
    "uniform length up to 800 tokens (uniform-800), as their range shows; MMLU's stand beside them."
)
THEIRS = "uniform-800"  # the dataset whose batches are like those of the paper's figure
# Predictors with units and digits, and where they lie in the paper's figure: percentiles 5, 50, 95 of 313 batches.
PREDICTORS = {"m - L/k": ("tokens", 0, (257, 359, 461)), "r/k": ("", 3, (0.44, 0.625, 0.75))}
FEWEST_POINTS = 10
RESAMPLES = 2000
RANGE, PUBLISHED_RANGE = "Percentiles 5, 50, 95", "Paper: percentiles 5, 50, 95"
COLUMNS = (
    Column("Prompts"), Column("Predictor"), Column("Batches"), Column("Slope", lambda value: f"{value:.4g}"),
    Column("Intercept", lambda value: f"{value:.3g}"), Column("R²", fixed(2)), Column("Paper: R²", fixed(2)),
    Column(RANGE), Column(PUBLISHED_RANGE),
)  # fmt: skip


@dataclass(frozen=True)
class Points:
    """The batches of a comparison: ``speedup`` and each predictor, a line a batch.

    ``doubted``: one of both methods was INVALID.
    """

    row: Row
    frame: pandas.DataFrame
    doubted: bool

    def line(self, predictor: str) -> Any:
        """The line of least squares through the speedups."""
        return scipy.stats.linregress(self.frame[predictor], self.frame["speedup"])

    def r_squared(self, predictor: str) -> float:
        """Share of the speedup's variance that a predictor explains."""
        return float(self.line(predictor).rvalue ** 2)

    def resampled(self) -> NDArray[np.float64]:
        """R² of r/k less that of m - L/k, in resamples of the batches."""
        rng, values = np.random.default_rng(0), self.frame[["speedup", "r/k", "m - L/k"]].to_numpy()
        found = []
        for _ in range(RESAMPLES):
            drawn = np.corrcoef(values[rng.integers(0, len(values), len(values))], rowvar=False)
            found.append(drawn[0, 1] ** 2 - drawn[0, 2] ** 2)
        return np.array(found)


Found = list[Points]


def select(records: Sequence[Record]) -> Found:
    """Of each dataset the comparison with most batches, that of the paper's workload first."""
    best: dict[str, Points] = {}
    for record in records:
        points = _points(record, records)
        if points and len(points.frame) > len(best[points.row.dataset].frame if points.row.dataset in best else ()):
            best[points.row.dataset] = points
    return [best[name] for name in sorted(best, key=lambda name: (name != THEIRS, name))]


def _points(packed: Record, records: Sequence[Record]) -> Points | None:
    """The batches of prepacking beside full-batching's of the same run; None where they are none or few."""
    row = packed.row
    if (row.method, row.batch_size, row.status, row.metric) != (PACKED, 16, "ok", "prefill") or row.faults:
        return None
    beside = (each for each in records
              if each.row.comparison_id == row.comparison_id and each.row.method == BASE)  # fmt: skip
    base = next(beside, None)
    if base is None or base.row.status != "ok" or packed.whole_seconds() is None or base.whole_seconds() is None:
        return None
    ours, full = (record.sample_table().groupby("batch").mean() for record in (packed, base))
    frame = pandas.DataFrame({
        "speedup": full["seconds"] / ours["seconds"],
        "m - L/k": (full["computed_tokens"] - full["useful_tokens"]) / full["prompts"],
        "r/k": ours["rows"] / ours["prompts"],
    })  # fmt: skip
    return Points(row, frame, row.doubted or base.row.doubted) if len(frame) >= FEWEST_POINTS else None


def _published(predictor: str) -> float | None:
    return paper.find("speedup_predictors", "r_squared", predictor=predictor)


def table(found: Found) -> Table:
    """A row for each workload and predictor."""
    body = []
    for points in found:
        like_theirs = points.row.dataset == THEIRS
        for name, (_, digits, theirs) in PREDICTORS.items():
            body.append({
                "Prompts": points.row.dataset, "Predictor": name, "Batches": len(points.frame),
                "Slope": points.line(name).slope, "Intercept": points.line(name).intercept,
                "R²": points.r_squared(name), "Paper: R²": _published(name) if like_theirs else None,
                RANGE: _three(np.percentile(points.frame[name], (5, 50, 95)), digits),
                PUBLISHED_RANGE: _three(theirs, digits) if like_theirs else None,
            })  # fmt: skip
    return make_table(COLUMNS, body, [[points.row.run_id] for points in found for _ in PREDICTORS])


def _three(values: Any, digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def claims(found: Found) -> list[Claim]:
    """Which predictor explains more."""
    text, published = "Bins over prompts (r/k) predict a batch's speedup better than m - L/k", "R² 0.92 against 0.72"
    rule = (
        f"in 95 % of resamples of the batches of {THEIRS} the R² of r/k is the larger; it does not if in 95 % that of "
        "m - L/k is"
    )
    if not found or found[0].row.dataset != THEIRS:
        return [not_run(text, rule, published)]
    points = found[0]
    share = float(np.mean(points.resampled() > 0))
    verdict = HOLDS if share >= 0.95 else FAILS if share <= 0.05 else CANNOT_TELL
    why = "" if verdict == HOLDS else f"r/k has the larger in {100 * share:.0f} % of resamples"
    if points.doubted:
        verdict, why = CANNOT_TELL, INVALID
    ours = f"R² {points.r_squared('r/k'):.2f} against {points.r_squared('m - L/k'):.2f}, {len(points.frame)} batches"
    return [decided(text, rule, (verdict, why), ours, published, unlike(points.row, 16, 5000))]


def figure(found: Found) -> Any:
    """The points and the line of each predictor, a line of panels for each workload."""
    drawn, axes = plt.subplots(len(found), 2, figsize=(10, 3.4 * len(found)), squeeze=False, layout="constrained")
    for panels, points in zip(axes, found, strict=True):
        for panel, (name, (unit, _, _)) in zip(panels, PREDICTORS.items(), strict=True):
            line, x = points.line(name), points.frame[name]
            ends = np.array([x.min(), x.max()])
            panel.scatter(x, points.frame["speedup"], s=14, color="#0072B2", alpha=0.7)
            panel.plot(ends, line.intercept + line.slope * ends, color="#D55E00", linewidth=1.4)
            panel.set_xlabel(f"{name} ({unit})" if unit else name)
            theirs = f" (paper: {_published(name) or float('nan'):.2f})" if points.row.dataset == THEIRS else ""
            panel.set_title(f"{points.row.dataset}, R² = {points.r_squared(name):.2f}{theirs}", fontsize=9)
            finish_axes(panel)
        panels[0].set_ylabel("speedup over full-batching")
    return drawn
