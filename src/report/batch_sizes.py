"""Sections of the paper's experiments on the size of batches: speedup, cost, and what predicts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas
import scipy.stats

from src import paper, stats
from src.measure.records import Record
from src.measure.row import Row
from src.report.pairs import mean_of
from src.report.plots import COLORS, MARKERS, finish_axes, titled, whisker
from src.report.section import Claim, Section, Table
from src.report.select import (
    BASE,
    DATASETS,
    PACKED,
    clean,
    decided,
    differences,
    judged,
    not_run,
    one_kind,
    order,
    pairs,
    published_as,
    ratio_to,
    seconds,
)  # fmt: skip
from src.report.tables import MODELS, model_name, notes, speedup, with_interval


def speedup_by_batch_size(records: Sequence[Record]) -> Section:
    """Speedup of prepacking over full-batching as batches grow, and what it is made of."""
    section = Section(
        "speedup_by_batch_size", "Speedup by batch size (figure of speedup over batch size)",
        "Prefill speedup of prepacking over full-batching. It is the product of three measured ratios: tokens that "
        "full-batching computes over those of prepacking, the rate at which each token is computed, and the share of "
        "the time that is the model's forward (the rest is packing, transfer and unpacking).",
    )  # fmt: skip
    rows = one_kind(clean(records, dataset=DATASETS, method=(PACKED, BASE), metric="prefill"))
    groups = {key: m for key, m in pairs(rows, "model", "loadbit", "dataset", "batch_size").items()
              if {PACKED, BASE} <= m.keys()}  # fmt: skip
    # The datasets of a curve were measured on as many prompts at each size.
    curves = Counter(key[:3] for key in groups)
    groups = {key: groups[key] for key in sorted(groups, key=_place) if curves[key[:3]] > 1}
    body, sources = [], []
    for (model, _, dataset, size), methods in groups.items():
        packed, base = methods[PACKED], methods[BASE]
        theirs = paper.speedup(published_as(model), str(dataset), int(str(size)))
        body.append([
            str(dataset), model_name(packed), str(size),
            speedup(packed) if packed.status == base.status == "ok" else f"{packed.status} / {base.status}",
            *_factors(packed, base), "" if theirs is None else f"{theirs:.2f}x",
            ratio_to(packed.speedup_over_full_batching, theirs),
        ])  # fmt: skip
        sources.append([packed.run_id, base.run_id])
    section.table = Table(
        ("Dataset", "Model", "Batch", "Speedup", "Tokens computed: full / packed", "Rate per token: packed / full",
         "Share of forward: packed / full", "Paper: speedup", "Ours / paper's"), body, sources,
    )  # fmt: skip
    shown = [m[PACKED] for m in groups.values()]
    section.notes = notes([row for row in shown if row.status != "ok"])
    ok = [(key, m[PACKED]) for key, m in groups.items() if m[PACKED].speedup_over_full_batching]
    best = max((row for _, row in ok), key=lambda row: row.speedup_over_full_batching or 0, default=None)
    section.claims.append(
        judged("The larger the batch, the larger the speedup: up to six times", best,
               best.speedup_over_full_batching if best else None, paper.speedup("llama2-1.3b", "mmlu", 64),
               batch_size=64,
               interval=(best.speedup_ci_low, best.speedup_ci_high) if best else (None, None))
    )  # fmt: skip
    section.claims.append(_order_of_datasets(ok))
    if ok:
        section.figure = _speedup_curves(ok)
    return section


def _place(key: tuple[Any, ...]) -> tuple[Any, ...]:
    model, bits, dataset, size = key
    return model, bits, order(dataset), size


def _factors(packed: Row, base: Row) -> list[str]:
    """The speedup's three factors, whose product it is."""

    def forward(row: Row) -> tuple[float, float] | None:
        if row.status != "ok" or not row.forward_s_mean or not row.computed_tokens or not row.seconds_per_batch_mean:
            return None
        return row.computed_tokens / (
            row.forward_s_mean * row.num_batches
        ), row.forward_s_mean / row.seconds_per_batch_mean

    p, b = forward(packed), forward(base)
    if not p or not b or not packed.computed_tokens or not base.computed_tokens:
        return ["", "", ""]
    return [f"{base.computed_tokens / packed.computed_tokens:.2f}", f"{p[0] / b[0]:.2f}", f"{p[1] / b[1]:.2f}"]


def _order_of_datasets(found: list[tuple[tuple[Any, ...], Row]]) -> Claim:
    """Whether datasets rank as in the paper, at the largest batch size that has most of them."""
    text = "Datasets rank alike by speedup"
    by_size: dict[int, list[tuple[float, float]]] = {}
    for (model, _, dataset, size), row in found:
        theirs = paper.speedup(published_as(model), str(dataset), size)
        if theirs and row.speedup_over_full_batching:
            by_size.setdefault(size, []).append((row.speedup_over_full_batching, theirs))
    size = max(by_size, key=lambda size: (len(by_size[size]), size), default=0)
    if len(by_size.get(size, [])) < 3:
        return not_run(text, why="fewer than three datasets were measured")
    rank = float(scipy.stats.spearmanr(*zip(*by_size[size], strict=True)).statistic)
    said = f"{text} (rank correlation, batches of {size})"
    return decided(said, "1", f"{rank:.2f}", rank >= 0.8, differences(found[0][1]))


def _speedup_curves(found: list[tuple[tuple[Any, ...], Row]]) -> Any:
    figure, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    model = found[0][0][0]
    for dataset in sorted({key[2] for key, _ in found}, key=order):
        style: dict[str, Any] = {
            "marker": MARKERS[dataset],
            "color": COLORS[dataset],
            "markersize": 5,
            "linewidth": 1.4,
        }
        points = [(key[3], row) for key, row in found if key[0] == model and key[2] == dataset]
        x, y = [size for size, _ in points], [row.speedup_over_full_batching or np.nan for _, row in points]
        ours.plot(x, y, label=dataset, **style)
        for size, row in points:
            whisker(ours, size, row.speedup_over_full_batching or np.nan, row.speedup_ci_low, row.speedup_ci_high,
                     color=COLORS[dataset])  # fmt: skip
        known = [(size, value) for size in (4, 8, 16, 32, 64)
                 if (value := paper.speedup(published_as(model), dataset, size))]  # fmt: skip
        theirs.plot([size for size, _ in known], [value for _, value in known], linestyle="--", **style)
    top = 1.1 * max(row.speedup_over_full_batching or 0 for _, row in found)
    ours.set_ylabel("speedup over full-batching (95 % interval)")
    shown = [row for key, row in found if key[0] == model]
    for panel, name in (
        (ours, f"here: {titled(shown)}"),
        (theirs, f"paper: {MODELS[published_as(model)]}, {paper.GPU}"),
    ):
        panel.set_xscale("log", base=2)
        panel.set_xticks((4, 8, 16, 32, 64), ("4", "8", "16", "32", "64"))
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set_ylim(0, max(7, top))
        panel.set_xlabel("batch size (prompts)")
        panel.set_title(name, fontsize=9)
        finish_axes(panel)
    ours.legend(frameon=False, fontsize=8)
    return figure


def batch_cost(records: Sequence[Record]) -> Section:
    """Plain prefill of k equal prompts of m tokens: when is a larger batch free?"""
    section = Section(
        "batch_cost", "When is a larger batch free? (figure of prefill time over batch size)",
        "A plain prefill of k prompts of m tokens each. While the device is not busy, more prompts cost hardly more; "
        "once it is, time grows with the tokens.",
    )  # fmt: skip
    rows = [row for row in one_kind(clean(records, dataset="equal", method=BASE)) if row.longest_prompt_tokens]
    rows.sort(key=lambda row: (row.model, row.longest_prompt_tokens or 0, row.batch_size))
    alone = {(row.model_hash, row.longest_prompt_tokens): row for row in rows if row.batch_size == 1}
    body, sources = [], []
    for row in rows:
        m, k = row.longest_prompt_tokens, row.batch_size
        theirs = paper.find("prefill_by_batch_size_and_length", "prefill_s", prompt_length=m, batch_size=k)
        theirs_alone = paper.find("prefill_by_batch_size_and_length", "prefill_s", prompt_length=m, batch_size=1)
        body.append([
            model_name(row), str(m), str(k), seconds(row),
            "1.00" if k == 1 else _said(_over_alone(row, alone.get((row.model_hash, m)))),
            "" if theirs is None else f"{theirs:.3f}", ratio_to(theirs, theirs_alone),
        ])  # fmt: skip
        sources.append([row.run_id])
    section.table = Table(
        (
            "Model",
            "Tokens m",
            "Prompts k",
            "Seconds",
            "Over k = 1 (of two runs)",
            "Paper: seconds",
            "Paper: over k = 1",
        ),
        body,
        sources,
    )
    section.claims.append(_free_batches(rows, alone))
    if rows:
        figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
        published = [(int(line["prompt_length"]), int(line["batch_size"]), float(line["prefill_s"]))
                     for line in paper.table("prefill_by_batch_size_and_length")]  # fmt: skip
        drawn = [row for row in rows if row.model_hash == rows[0].model_hash]
        measured = [(row.longest_prompt_tokens or 0, row.batch_size, row.seconds_per_batch_mean or np.nan)
                    for row in drawn]  # fmt: skip
        titles = (f"here: {titled(drawn)}", f"paper: Llama2-1.3B, {paper.GPU}")
        for panel, points, title in zip(panels, (measured, published), titles, strict=True):
            for marker, m in zip("osD^vP", sorted({m for m, *_ in points}), strict=False):
                line = sorted((k, s) for length, k, s in points if length == m)
                shade = COLORS[DATASETS["osD^vP".index(marker)]]
                panel.plot([k for k, _ in line], [s for _, s in line], marker=marker, color=shade, label=f"{m} tokens")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xlabel("prompts in the batch")
            panel.set_ylabel("seconds")
            panel.set_title(title, fontsize=9)
            panel.legend(frameon=False, fontsize=8)
            finish_axes(panel)
        section.figure = figure
    return section


def _over_alone(row: Row, alone: Row | None) -> stats.Interval | None:
    """A batch's time over that of one prompt: two runs, whose means are taken for independent."""
    if alone is None or row.seconds_per_batch_mean is None or alone.seconds_per_batch_mean is None:
        return None
    return stats.ratio_of_intervals(mean_of(row), mean_of(alone))


def _said(found: stats.Interval | None, unit: str = "") -> str:
    return "" if found is None else with_interval(found.value, found.low, found.high, unit)


def _free_batches(rows: Sequence[Row], alone: dict[tuple[str | None, int | None], Row]) -> Claim:
    """Whether four prompts of about 100 tokens cost less than twice what one does, as on the authors' GPU (1.42)."""
    text = "A small batch is nearly free: four prompts of 100 tokens take less than twice the time of one"
    one, four = (
        paper.find("prefill_by_batch_size_and_length", "prefill_s", prompt_length=100, batch_size=k) for k in (1, 4)
    )
    published = f"{four / one:.2f}x" if one and four else ""
    for row in rows:
        first = alone.get((row.model_hash, row.longest_prompt_tokens))
        found = _over_alone(row, first)
        if (row.longest_prompt_tokens, row.batch_size) == (100, 4) and found:
            why = f"{row.device_name}: one prompt keeps the device busy already"
            return decided(text, published, f"{_said(found, 'x')}, of two runs", found.value < 2, why)
    return not_run(text, published)


def speedup_predictors(records: Sequence[Record]) -> Section:
    """Speedup of single batches against m - L/k and against r/k, with regression lines."""
    section = Section(
        "speedup_predictors", "What predicts the speedup (figure of speedup against batch statistics)",
        "Each point is a batch of 16: its speedup against the longest prompt less the mean one (m - L/k), and against "
        "bins over prompts (r/k), with the line of least squares and its R².",
    )  # fmt: skip
    every = [(record, _points(record, records)) for record in records if _has_points(record)]
    found = [(record, points) for record, points in every if points is not None and len(points) >= 10]
    best = max(found, key=lambda item: len(item[1]), default=None)
    published = {name: paper.find("speedup_predictors", "r_squared", predictor=name) for name in ("m - L/k", "r/k")}
    text = "Bins over prompts (r/k) predict the speedup better than m - L/k"
    if best is None:
        section.claims.append(not_run(text, "R² 0.92 against 0.72"))
        return section
    record, points = best
    body, squares = [], {}
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for panel, (name, column, unit) in zip(panels, (("m - L/k", "slack", "tokens"), ("r/k", "fill", "")), strict=True):
        line = scipy.stats.linregress(points[column], points["speedup"])
        squares[name] = line.rvalue**2
        ends = np.array([points[column].min(), points[column].max()])
        panel.scatter(points[column], points["speedup"], s=14, color="#0072B2", alpha=0.7)
        panel.plot(ends, line.intercept + line.slope * ends, color="#D55E00", linewidth=1.4)
        panel.set_xlabel(f"{name}" + (f" ({unit})" if unit else ""))
        panel.set_title(f"R² = {squares[name]:.2f} (paper: {published[name] or float('nan'):.2f})", fontsize=9)
        finish_axes(panel)
        body.append([name, str(len(points)), f"{line.slope:.4g}", f"{line.intercept:.3g}", f"{squares[name]:.2f}",
                     "" if published[name] is None else f"{published[name]:.2f}"])  # fmt: skip
    panels[0].set_ylabel("speedup of a batch over full-batching")
    section.figure = figure
    section.table = Table(
        ("Predictor", "Batches", "Slope", "Intercept", "R²", "Paper: R²"), body, [[record.row.run_id]] * len(body)
    )
    holds = squares["r/k"] > squares["m - L/k"]
    ours = f"R² {squares['r/k']:.2f} against {squares['m - L/k']:.2f}"
    section.claims.append(decided(text, "R² 0.92 against 0.72", ours, holds, differences(record.row)))
    return section


def _has_points(record: Record) -> bool:
    row = record.row
    return (row.method, row.batch_size, row.status, row.metric) == (PACKED, 16, "ok", "prefill") and not row.quirks


def _points(packed: Record, records: Sequence[Record]) -> pandas.DataFrame | None:
    """Each batch's speedup, m - L/k and r/k, from its samples and those of full-batching beside them."""
    beside = (record for record in records
              if record.row.comparison_id == packed.row.comparison_id and record.row.method == BASE)  # fmt: skip
    base = next(beside, None)
    if base is None or base.row.status != "ok" or packed.folder is None or base.folder is None:
        return None
    ours, full = (
        pandas.read_csv(record.folder / "samples.csv").groupby("batch").mean()
        for record in (packed, base)
        if record.folder
    )
    return pandas.DataFrame({
        "speedup": full["seconds"] / ours["seconds"],
        "slack": (full["computed_tokens"] - full["useful_tokens"]) / full["prompts"],
        "fill": ours["rows"] / ours["prompts"],
    })  # fmt: skip
