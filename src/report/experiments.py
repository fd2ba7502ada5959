"""Sections of the paper's experiments on time: ours beside the published figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from src import paper
from src.measure.records import Record
from src.measure.row import Row
from src.report.plots import STYLE, bars, finish_axes, grouped_bars, legend, room, titled, whisker
from src.report.section import Section, Table
from src.report.select import (
    BASE,
    DATASETS,
    ORDERED,
    PACKED,
    WHOLE,
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
from src.report.tables import UNITS, label, model_name, notes, number, speedup

LEAST = 0.02  # by so much may the least time lie above another and still count as least


def readme_table(records: Sequence[Record]) -> Section:
    """The authors' example table."""
    section = Section(
        "readme_table", "The authors' example table (their README)",
        "Prepacking, full-batching and length-ordered batching on MMLU; the authors' figures are of Llama2-1.3B in "
        "batches of 64 on an NVIDIA A6000.",
    )  # fmt: skip
    rows = clean(records, dataset="mmlu", method=(PACKED, BASE, ORDERED), protocol="paper", batch_size=(32, 64))
    rows = [row for row in rows if row.num_prompts > row.batch_size]  # not those of the search for the largest batch
    groups = {key: m for key, m in pairs(rows, "model", "loadbit", "batch_size", "metric").items() if len(m) == 3}
    largest = max((key[2] for key in groups), default=0)  # type: ignore[type-var]
    groups = {key: m for key, m in groups.items() if key[2] == largest}
    body, sources, shown = [], [], []
    for (_, _, size, metric), methods in groups.items():
        for name in (PACKED, BASE, ORDERED):
            row = methods[name]
            theirs = {column: paper.find("readme_example_table", column, method=name) for column in
                      ("avg_prefill_s_per_batch", "max_gpu_memory_mb")} if metric == "prefill" else {}  # fmt: skip
            body.append([
                label(row), UNITS[row.metric], model_name(row), str(size), seconds(row),
                number(row.max_utilization_pct, 0), number(row.peak_memory_mb, 0), number(row.mean_utilization_pct, 0),
                number(row.seconds_per_batch_std, 3), speedup(row),
                *(number(theirs[key], digits) if theirs else "" for key, digits in
                  (("avg_prefill_s_per_batch", 3), ("max_gpu_memory_mb", 0))),
                _times(_readme_speedup(name)) if theirs else "",
            ])  # fmt: skip
            sources.append([row.run_id])
            shown.append(row)
    section.table = Table(
        ("Method", "Metric", "Model", "Batch", "s / batch", "Max util (%)", "Peak memory (MB)", "Mean util (%)",
         "Std (s)", "Speedup over full-batching", "Paper: s / batch", "Paper: peak memory (MB)", "Paper: speedup"),
        body, sources,
    )  # fmt: skip
    section.notes = notes(shown) if shown else []
    packed = next((methods.get(PACKED) for (*_, metric), methods in groups.items() if metric == "prefill"), None)
    section.claims = [
        judged(
            "Prepacking prefills batches of 64 MMLU prompts five times as fast as full-batching",
            packed, packed.speedup_over_full_batching if packed else None,
            _readme_speedup(PACKED),
            interval=(packed.speedup_ci_low, packed.speedup_ci_high) if packed else (None, None), batch_size=64,
        )
    ]  # fmt: skip
    if shown:
        figure, axes = plt.subplots(
            1, len(groups), figsize=(5.2 * len(groups), 2.6), squeeze=False, layout="constrained"
        )
        for panel, methods in zip(axes.flat, groups.values(), strict=True):
            bars(panel, [methods[name] for name in (PACKED, BASE, ORDERED)])
            panel.set_xlabel("seconds per batch (mean, 95 % interval)")
            panel.set_title(titled(methods.values()), fontsize=9)
            finish_axes(panel)
        section.figure = figure
    return section


def time_by_dataset(records: Sequence[Record]) -> Section:
    """Seconds per batch of 16 by dataset, metric and model."""
    section = Section(
        "time_by_dataset", "Time per batch by dataset (figures of prefill and TTFT time)",
        "Batches of 16 prompts from six datasets. The paper's speedup is of the same model where it has it, else of "
        "Llama2-1.3B.",
    )  # fmt: skip
    rows = clean(records, dataset=DATASETS, method=(PACKED, BASE, ORDERED), batch_size=16)
    rows = one_kind([row for row in rows if row.num_prompts > row.batch_size])
    groups = pairs(rows, "metric", "model", "loadbit", "dataset")
    groups = {key: found for key, found in sorted(groups.items(), key=lambda item: (*item[0][:3], order(item[0][3])))}  # type: ignore[arg-type]
    body, sources = [], []
    for (metric, model, _, dataset), methods in groups.items():
        asked = {"metric": metric, "dataset": dataset, "model": published_as(model)}
        theirs = [paper.find("time_per_batch_by_dataset", "seconds_per_batch", method=name, **asked)
                  for name in (BASE, PACKED)]  # fmt: skip
        ratio = theirs[0] / theirs[1] if theirs[0] and theirs[1] else None
        found = [methods.get(name) for name in (PACKED, BASE, ORDERED)]
        packed = found[0]
        body.append([
            str(dataset), UNITS[str(metric)], model_name(next(iter(methods.values()))),
            *(seconds(row) for row in found), speedup(packed) if packed else "", number(ratio, 2) + "x",
            ratio_to(packed.speedup_over_full_batching if packed else None, ratio),
        ])  # fmt: skip
        sources.append([row.run_id for row in methods.values()])
    section.table = Table(
        ("Dataset", "Metric", "Model", "Prepacking (s)", "Full-batching (s)", "Length-ordered * (s)",
         "Speedup over full-batching", "Paper: speedup", "Ours / paper's"), body, sources,
    )  # fmt: skip
    section.notes = notes(rows) if rows else []
    text = "Prepacking is faster than full-batching on every dataset, prefill and TTFT, in batches of 16"
    done = [m for m in groups.values() if {PACKED, BASE} <= m.keys()]
    faster = sum(m[PACKED].speedup_verdict == "faster" for m in done)
    if done:
        why = "elsewhere the interval reaches the noise floor, or a run failed"
        ours = f"{faster} of {len(done)} comparisons"
        section.claims.append(decided(text, "all six datasets", ours, faster == len(done), why))
    else:
        section.claims.append(not_run(text, "all six datasets"))
    if groups:
        section.figure = _bars_by_dataset(groups)
    return section


def _bars_by_dataset(groups: dict[tuple[Any, ...], dict[str, Row]]) -> Any:
    wide = Counter(key[:3] for key in groups)
    panels = [kind for kind in wide if wide[kind] > 1] or list(wide)
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, min(2, len(panels)), figsize=(6.2 * min(2, len(panels)), 3.4 * lines),
                                squeeze=False, layout="constrained")  # fmt: skip
    for panel, kind in zip(axes.flat, panels, strict=False):
        of_kind = {key[3]: methods for key, methods in groups.items() if key[:3] == kind}
        for x, row in grouped_bars(panel, [*of_kind.values()], (PACKED, BASE, ORDERED), "seconds_per_batch_mean"):
            mean = row.seconds_per_batch_mean or 0.0
            whisker(panel, x, mean, row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high)
        panel.set_xticks(range(len(of_kind)), of_kind, fontsize=8)
        panel.set_ylabel("seconds per batch (mean, 95 % interval)")
        shown = [row for methods in of_kind.values() for row in methods.values()]
        panel.set_ylim(
            0, room([row.seconds_per_batch_mean for row in shown], [row.seconds_per_batch_ci_high for row in shown])
        )
        panel.set_title(titled(shown), fontsize=9)
        finish_axes(panel)
    present = {row.method for methods in groups.values() for row in methods.values()}
    legend(figure, [name for name in (PACKED, BASE, ORDERED) if name in present])
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    return figure


def dataset_level(records: Sequence[Record]) -> Section:
    """Seconds per prompt where the dataset is known in advance."""
    section = Section(
        "dataset_level", "Packing or sorting the whole dataset (figure of prefill time per prompt)",
        "Milliseconds per prompt of four methods. Dataset-prepacking (packing timed) and length-ordered (*) need all "
        "prompts in advance.",
    )  # fmt: skip
    names = (PACKED, WHOLE, BASE, ORDERED)
    rows = one_kind(clean(records, dataset=DATASETS, metric="prefill"))
    groups = {
        key: m
        for key, m in pairs(rows, "model", "loadbit", "dataset", "batch_size", "num_prompts").items()
        if WHOLE in m
    }
    body, sources = [], []
    for (model, _, dataset, size, _), methods in sorted(
        groups.items(), key=lambda item: str(item[0][:2]) + f"{item[0][3]:3}"
    ):
        asked = {"model": published_as(model), "dataset": dataset, "batch_size": size}
        theirs = [
            paper.find("dataset_level_prefill_per_prompt", "prefill_s_per_prompt", method=name, **asked)
            for name in names
        ]
        body.append([str(dataset), model_name(methods[WHOLE]), str(size),
                     *(_per_prompt(methods.get(name)) for name in names),
                     *("" if value is None else f"{1000 * value:.2f}" for value in theirs)])  # fmt: skip
        sources.append([row.run_id for row in methods.values()])
    section.table = Table(
        ("Dataset", "Model", "Batch", *(f"{name} (ms)" for name in names), *(f"Paper: {name} (ms)" for name in names)),
        body, sources,
    )  # fmt: skip
    section.notes = notes([row for m in groups.values() for row in m.values() if row.status != "ok"])
    text = f"Packing the whole dataset takes least time per prompt at every batch size (within {100 * LEAST:.0f} %)"
    complete = [m for m in groups.values() if set(names) <= m.keys() and all(row.status == "ok" for row in m.values())]
    if complete:

        def cost(row: Row) -> float:
            return row.seconds_per_prompt_mean or np.inf

        first = sum(
            cost(m[WHOLE]) <= (1 + LEAST) * min(cost(m[name]) for name in (PACKED, BASE, ORDERED)) for m in complete
        )
        why = differences(complete[0][WHOLE]) + "; packing is timed here"
        ours = f"{first} of {len(complete)} batch sizes"
        section.claims.append(decided(text, "on mmlu and alpaca", ours, first == len(complete), why))
        section.figure = _per_prompt_curves(groups, names)
    else:
        section.claims.append(not_run(text, "on mmlu and alpaca"))
    return section


def _per_prompt(row: Row | None) -> str:
    if row is None or row.seconds_per_prompt_mean is None:
        return row.status if row else ""
    return f"{1000 * row.seconds_per_prompt_mean:.2f}"


def _per_prompt_curves(groups: dict[tuple[Any, ...], dict[str, Row]], names: Sequence[str]) -> Any:
    model, _, dataset = next(iter(groups))[:3]
    figure, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for name, marker in zip(names, "osD^", strict=True):
        style: dict[str, Any] = {"marker": marker, "color": STYLE[name]["color"], "label": name, "linewidth": 1.4}
        points = sorted(
            (key[3], 1000 * (m[name].seconds_per_prompt_mean or 0.0)) for key, m in groups.items()
            if key[0] == model and key[2] == dataset and name in m and m[name].seconds_per_prompt_mean
        )  # fmt: skip
        ours.plot([x for x, _ in points], [y for _, y in points], **style)
        known = [(int(row["batch_size"]), 1000 * float(row["prefill_s_per_prompt"]))
                 for row in paper.table("dataset_level_prefill_per_prompt")
                 if (row["model"], row["dataset"], row["method"]) == ("llama2-1.3b", dataset, name)]  # fmt: skip
        theirs.plot([x for x, _ in known], [y for _, y in known], linestyle="--", **style)
    for panel, title in (
        (
            ours,
            "here: "
            + titled(row for key, m in groups.items() if key[0] == model and key[2] == dataset for row in m.values()),
        ),
        (theirs, f"paper: Llama2-1.3B, {dataset}"),
    ):
        panel.set_xscale("log", base=2)
        panel.set_xticks((8, 16, 32), ("8", "16", "32"))
        panel.set_ylim(bottom=0)
        panel.set_xlabel("batch size (prompts; dataset-prepacking: bins)")
        panel.set_ylabel("ms per prompt")
        panel.set_title(title, fontsize=9)
        finish_axes(panel)
    ours.legend(frameon=False, fontsize=8)
    return figure


def _readme_speedup(method: str) -> float | None:
    base, own = (paper.find("readme_example_table", "avg_prefill_s_per_batch", method=name) for name in (BASE, method))
    return base / own if base and own else None


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else ""
