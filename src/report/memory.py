"""Sections on memory: what each method takes, and the largest batch that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from src import paper
from src.measure.records import Record
from src.measure.row import Row
from src.report.plots import STYLE, finish_axes, grouped_bars, legend, titled
from src.report.section import Claim, Section, Table
from src.report.select import (
    BASE,
    DATASETS,
    ORDERED,
    PACKED,
    by_method,
    clean,
    judged,
    one_kind,
    order,
    pairs,
)
from src.report.tables import label, model_name, notes, number


def memory_and_utilization(records: Sequence[Record]) -> Section:
    """Peak memory and utilization of each method on each dataset."""
    section = Section(
        "memory_and_utilization", "Memory and utilization",
        "Peak memory of each method beside what it must hold (weights, keys and values of the prompts' own tokens, "
        "logits), and how busy the device was. On a CPU: resident memory of the process, utilization of its cores.",
    )  # fmt: skip
    rows = one_kind(clean(records, dataset=DATASETS, method=(PACKED, BASE, ORDERED), batch_size=16))
    # All three methods were measured on one metric; of both, prefill, as in the authors' table.
    whole = {row.metric for row in rows if row.method == ORDERED}
    rows = [row for row in rows if row.metric == ("ttft" if whole == {"ttft"} else "prefill")]
    groups = pairs(rows, "model", "loadbit", "dataset")
    body, sources = [], []
    for (_, _, dataset), methods in sorted(groups.items(), key=lambda item: (str(item[0][:2]), order(str(item[0][2])))):
        for name in (PACKED, BASE, ORDERED):
            if row := methods.get(name):
                overhead = "" if row.memory_overhead_pct is None else f"{row.memory_overhead_pct:+.0f}"
                mean = number(row.mean_utilization_pct, 0) + ("" if row.utilization_valid else " †")
                body.append(
                    [
                        str(dataset),
                        model_name(row),
                        label(row),
                        number(row.peak_memory_mb, 0),
                        number(row.must_hold_mb, 0),
                        overhead,
                        number(row.max_utilization_pct, 0),
                        mean,
                    ]
                )
                sources.append([row.run_id])
    section.table = Table(
        ("Dataset", "Model", "Method", "Peak memory (MB)", "Must hold (MB)", "Over that (%)", "Max util (%)",
         "Mean util (%)"), body, sources,
    )  # fmt: skip
    section.notes = notes(rows) if rows else []
    section.claims.append(_memory_claim(records))
    if groups:
        _memory_figure(section, groups)
    return section


def _memory_claim(records: Sequence[Record]) -> Claim:
    """Peak memory of full-batching over prepacking's on MMLU, as in the authors' table."""
    text = "Full-batching needs 7.6 times the memory of prepacking (MMLU, batches of 64)"
    rows = clean(records, dataset="mmlu", metric="prefill", protocol="paper", status="ok", method=(PACKED, BASE))
    groups = {key: m for key, m in pairs(rows, "model", "loadbit", "batch_size", "num_prompts").items() if len(m) == 2}
    theirs = [paper.find("readme_example_table", "max_gpu_memory_mb", method=name) for name in (BASE, PACKED)]
    ratio = theirs[0] / theirs[1] if theirs[0] and theirs[1] else None
    if not groups:
        return judged(text, None, None, ratio)
    methods = groups[max(groups, key=lambda key: int(str(key[2])))]
    packed, base = methods[PACKED], methods[BASE]
    if not packed.peak_memory_mb or not base.peak_memory_mb:
        return judged(text, None, None, ratio)
    return judged(text, packed, base.peak_memory_mb / packed.peak_memory_mb, ratio, batch_size=64)


def _memory_figure(section: Section, groups: dict[tuple[Any, ...], dict[str, Row]]) -> None:
    model = Counter(key[:2] for key in groups).most_common(1)[0][0]
    of_model = {key[2]: m for key, m in groups.items() if key[:2] == model}
    names = sorted(of_model, key=order)
    figure, panel = plt.subplots(figsize=(9, 3.4), layout="constrained")
    groups_of_model = [of_model[name] for name in names]
    for x, row in grouped_bars(panel, groups_of_model, (PACKED, BASE, ORDERED), "peak_memory_mb"):
        if row.must_hold_mb:
            rest = row.resident_rest_mb or 0.0
            panel.hlines(row.must_hold_mb + rest, x - 0.125, x + 0.125, color="black", linewidth=2)
    panel.set_xticks(range(len(names)), names)
    panel.set_ylabel("peak memory (MB)\nlines: what must be held, and the\nprocess without weights")
    shown = [row for methods in groups_of_model for row in methods.values()]
    panel.set_title(titled(shown), fontsize=9)
    legend(figure, [name for name in (PACKED, BASE, ORDERED) if any(row.method == name for row in shown)])
    finish_axes(panel)
    section.figure = figure


def largest_batch(records: Sequence[Record]) -> Section:
    """The largest batch that each method prefills before memory runs out."""
    section = Section(
        "largest_batch", "The largest batch before memory runs out",
        "Found by search: batches double until one fails, then the gap is halved. On a GPU the card's memory is the "
        "limit, on a CPU one that was set.",
    )  # fmt: skip
    rows = [row for row in clean(records, method=(PACKED, BASE)) if row.num_prompts == row.batch_size]
    columns = ("model", "loadbit", "dataset", "metric", "protocol", "memory_limit_mb", "model_hash")
    kinds = by_method([row for row in rows if row.status == "oom"], *columns)
    body, sources, times, sizes = [], [], [], {}
    for kind, failed in sorted(kinds.items(), key=str):
        if {PACKED, BASE} - failed.keys():
            continue
        largest: dict[str, int] = {}
        for method in (PACKED, BASE):
            same = [row for row in rows if row.method == method and all(
                getattr(row, column) == value for column, value in zip(columns, kind, strict=True))]  # fmt: skip
            largest[method] = max((row.batch_size for row in same if row.status == "ok"), default=0)
            fails = min((row.batch_size for row in same if row.status == "oom"), default=0)
            body.append([method, str(kind[2]), model_name(failed[method]), f"{kind[5]:,}" if kind[5] else "the card's",
                         str(largest[method]), str(fails)])  # fmt: skip
            sources.append([row.run_id for row in same])
        sizes[str(kind[2])] = largest
        if largest[BASE]:
            times.append((largest[PACKED] / largest[BASE], failed[PACKED]))
    section.table = Table(("Method", "Dataset", "Model", "Memory (MB)", "Largest batch", "Fails at"), body, sources)
    best = max(times, key=lambda item: item[0], default=None)
    section.claims.append(
        judged("Prepacking takes batches up to 16 times as large before memory runs out", best and best[1],
               best and best[0], paper.LARGER_BATCHES)
    )  # fmt: skip
    if sizes:
        figure, panel = plt.subplots(figsize=(6, 0.9 + 0.9 * len(sizes)), layout="constrained")
        for place, (_, largest) in enumerate(sizes.items()):
            for offset, method in ((-0.2, PACKED), (0.2, BASE)):
                panel.barh(place + offset, largest[method], 0.36, edgecolor="black", linewidth=0.6, **STYLE[method])
                panel.annotate(f" {largest[method]}", (largest[method], place + offset), va="center", fontsize=8)
        panel.set_yticks(range(len(sizes)), list(sizes))
        panel.invert_yaxis()
        panel.set_xlabel("largest batch prefilled (prompts)")
        panel.set_title(titled(row for row in rows if row.status == "oom"), fontsize=9)
        legend(figure, (PACKED, BASE))
        finish_axes(panel)
        section.figure = figure
    return section
