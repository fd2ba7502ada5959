"""Sections of memory and generation, and of what the paper does not have: today's methods, traces, scale, faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from src import paper
from src.measure.records import Record
from src.measure.row import Row
from src.prefill.methods import method_of
from src.report.faults import faults_rows
from src.report.plots import STYLE, clear_axes, grouped_bars, room, whisker
from src.report.section import Claim, Section, Table
from src.report.select import (
    BASE,
    DATASETS,
    ORDERED,
    PACKED,
    clean,
    decided,
    judged,
    model_name,
    not_run,
    one_protocol,
    order,
    pairs,
    seconds,
)
from src.report.tables import label, notes, number, ratio_cells

ORDER = (PACKED, "padding-free", "dataset-prepacking", BASE, ORDERED, "continuous-batching", "vllm")


def _place(method: str) -> int:
    """Where a method stands among others: those that were added last."""
    return ORDER.index(method) if method in ORDER else len(ORDER)


def memory_and_utilization(records: Sequence[Record]) -> Section:
    """Peak memory and utilization of each method on each dataset."""
    section = Section(
        "memory_and_utilization", "Memory and utilization",
        "Peak memory of each method beside what it must hold (weights, keys and values of the prompts' own tokens, "
        "logits), and how busy the device was. On a CPU: resident memory of the process, utilization of its cores.",
    )  # fmt: skip
    rows = one_protocol(clean(records, dataset=DATASETS, method=(PACKED, BASE, ORDERED), batch_size=16))
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
    section.notes = notes(rows)[1:] if rows else []
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
    panel.set_ylabel("peak memory (MB)")
    panel.set_title("bars: peak; lines: what must be held, and the process without weights", fontsize=9)
    panel.legend(frameon=False, fontsize=8)
    clear_axes(panel)
    section.figure = figure


def generation(records: Sequence[Record]) -> Section:
    """Continuations from each method's cache, against ordinary generation."""
    section = Section(
        "generation", "Generation from the packed cache",
        "Greedy continuations from each method's cache, token for token against ordinary generation from each prompt "
        "alone. A difference counts unless the model is undecided between the two tokens.",
    )  # fmt: skip
    rows = [row for row in clean(records) if row.generated_tokens]
    rows.sort(key=lambda row: (row.protocol, _place(row.method)))
    text = "Generation goes on from the packed cache as from an ordinary one"
    section.table = Table(
        ("Method", "Protocol", "Model", "Prompts", "Tokens compared", "Equal (%)", "Near-ties",
         "Largest KV difference"),
        [[label(row), row.protocol, model_name(row), str(row.verified_prompts), str(row.generated_tokens),
          number(row.generated_equal_pct, 0), str(row.verified_near_ties), f"{row.verified_max_rel_diff or 0:.1e}"]
         for row in rows],
        [[row.run_id] for row in rows],
    )  # fmt: skip
    section.notes = notes([row for row in rows if row.status != "ok"])[1:]
    packed = [row for row in rows if row.method == PACKED]
    if not packed:
        section.claims.append(not_run(text, "equal"))
        return section
    holds = all(row.status == "ok" and row.generated_equal_pct == 100 for row in packed)
    compared = sum(row.generated_tokens or 0 for row in packed)
    section.claims.append(
        decided(text, "equal", f"{compared:,} tokens compared, {'all equal' if holds else 'not all equal'}", holds,
                "see the table")
    )  # fmt: skip
    return section


def today(records: Sequence[Record]) -> Section:
    """All methods, engines among them, doing identical work."""
    section = Section(
        "today", "What prepacking is worth today",
        "All methods do identical work (protocol modern, TTFT) over the same prompts, in turns. Of ideal: a dense "
        "forward of the model's own code over as many useful tokens in prompts of equal length. Of limit: the least "
        "operations or bytes at this machine's measured rates. An offline method (*) needs all prompts in advance.",
    )  # fmt: skip
    rows = [row for row in clean(records, protocol="modern", metric="ttft") if not row.dataset.startswith("azure")]
    _ratios(section, rows, lambda methods: any(row.fraction_of_ideal is not None for row in methods.values()))
    return section


def traces(records: Sequence[Record]) -> Section:
    """Prompts of real serving: the Azure traces."""
    section = Section(
        "traces", "Prompts of real serving (Azure traces)",
        "The same on prompt lengths of the Azure LLM inference traces (conversation, code), cut where the row says. "
        "Long prompts of like length leave less padding to save.",
    )  # fmt: skip
    _ratios(section, clean(records, dataset=("azure-conv", "azure-code"), protocol="modern", metric="ttft"), len)
    return section


def _ratios(section: Section, rows: Sequence[Row], wanted: Any) -> None:
    """A table and a figure of methods as ratios, of the comparisons that are wanted."""
    kinds = pairs(
        rows, "dataset", "model", "loadbit", "dtype", "longest_prompt_tokens", "batch_size", "num_prompts", "forward"
    )
    kinds = _with_engines(kinds)
    groups = {
        key: m for key, m in sorted(kinds.items(), key=_by_columns)
        if wanted(m) and any(r.status == "ok" for r in m.values())
    }  # fmt: skip
    body, sources = [], []
    for (dataset, _, _, dtype, longest, size, *_), methods in groups.items():
        for name in sorted(methods, key=_place):
            row = methods[name]
            body.append([
                label(row) + (" *" if method_of(name).needs_dataset else ""), str(dataset),
                f"{model_name(row)}, {dtype}", str(size), str(longest), seconds(row), *ratio_cells(row),
            ])  # fmt: skip
            sources.append([row.run_id])
    section.table = Table(
        ("Method", "Dataset", "Model, type", "Batch", "Longest (tokens)", "s / batch", "Over full-batching",
         "Over length-ordered", "Of ideal", "Of limit"), body, sources,
    )  # fmt: skip
    section.notes = notes([row for m in groups.values() for row in m.values()])[1:] if groups else []
    if not groups:
        section.notes = ["not run: nothing was recorded for it"]
        return
    shown = [item for item in groups.items() if BASE in item[1]][:8]
    if not shown:
        return
    lines = -(-len(shown) // 2)
    across = min(2, len(shown))
    figure, axes = plt.subplots(lines, across, figsize=(6.4 * across, 3.0 * lines), squeeze=False, layout="constrained")
    for panel, ((dataset, _, _, dtype, _, size, *_), methods) in zip(axes.flat, shown, strict=False):
        names = sorted(methods, key=_place)
        for place, name in enumerate(names):
            row = methods[name]
            if row.speedup_over_full_batching is None:
                panel.annotate(f" {row.status}", (0, place), va="center", color="#B00020", fontsize=8)
                continue
            panel.barh(place, row.speedup_over_full_batching, 0.62, edgecolor="black", linewidth=0.6, **STYLE[name])
            if row.speedup_ci_low and row.speedup_ci_high:
                value = row.speedup_over_full_batching
                panel.errorbar(value, place, xerr=[[value - row.speedup_ci_low], [row.speedup_ci_high - value]],
                               color="black", capsize=3)  # fmt: skip
        panel.axvline(1, color="grey", linewidth=0.8)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(len(names) - 0.4, -0.6)
        values = [row.speedup_over_full_batching for row in methods.values()]
        panel.set_xlim(0, room(values, [row.speedup_ci_high for row in methods.values()]))
        panel.set_xlabel("speedup over full-batching (95 % interval)")
        panel.set_title(
            f"{dataset}, {model_name(next(iter(methods.values())))}, {dtype}, batches of {size}", fontsize=9
        )
        clear_axes(panel)
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    section.figure = figure


def _by_columns(item: tuple[tuple[Any, ...], object]) -> tuple[tuple[bool, Any], ...]:
    """Sorts by each column in turn, numbers as numbers; what has none comes last."""
    return tuple((value is None, value) for value in item[0])


def _with_engines(kinds: dict[tuple[object, ...], dict[str, Row]]) -> dict[tuple[object, ...], dict[str, Row]]:
    """Serving engines have no forward of ours: they stand beside the methods whatever theirs is."""
    engines = {key: m for key, m in kinds.items() if key[-1] is None}
    found: dict[tuple[object, ...], dict[str, Row]] = {}
    for key, methods in kinds.items():
        if key[-1] is not None:
            found[key] = methods | engines.get((*key[:-1], None), {})
    return found


def scaling(records: Sequence[Record]) -> Section:
    """Time against useful tokens, and memory, as batches grow to a thousand prompts, and prompts to many tokens."""
    section = Section(
        "scaling", "Time against useful tokens",
        "One batch each, of short prompts (mmlu) or long ones (azure-conv). Without padding, time is close to a "
        "straight line in useful tokens, but for attention, which grows with the square of a prompt's length.",
    )  # fmt: skip
    rows = clean(records, protocol="modern", metric="prefill", method=(PACKED, "padding-free"))
    rows = [row for row in rows if row.num_prompts == row.batch_size]
    beside = {row.comparison_id for row in rows if row.method == "padding-free"}
    rows = [row for row in rows if row.comparison_id in beside]
    rows = sorted(rows, key=lambda row: (row.model, row.dataset, _place(row.method), row.useful_tokens or 0))
    section.table = Table(
        ("Method", "Dataset", "Model", "Prompts", "Longest (tokens)", "Useful tokens", "Seconds", "µs per useful token",
         "Peak memory (MB)", "Must hold (MB)", "Over that (%)"),
        [[label(row), row.dataset, model_name(row), str(row.batch_size), str(row.longest_prompt_tokens),
          f"{row.useful_tokens or 0:,}", seconds(row),
          "" if not row.useful_tokens_per_s else f"{1e6 / row.useful_tokens_per_s:.0f}", number(row.peak_memory_mb, 0),
          number(row.must_hold_mb, 0), "" if row.memory_overhead_pct is None else f"{row.memory_overhead_pct:+.0f}"]
         for row in rows],
        [[row.run_id] for row in rows],
    )  # fmt: skip
    section.notes = notes([row for row in rows if row.status != "ok"])[1:]
    drawn = [row for row in rows if row.status == "ok"]
    if not drawn:
        section.notes = ["not run: nothing was recorded for it"]
        return section
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (dataset, method), line in _lines(drawn).items():
        style: dict[str, Any] = {
            "color": STYLE[method]["color"], "marker": "o" if dataset == "mmlu" else "s",
            "linestyle": "-" if dataset == "mmlu" else "--", "label": f"{method}, {dataset}", "markersize": 4,
        }  # fmt: skip
        tokens = [row.useful_tokens or 0 for row in line]
        panels[0].plot(tokens, [row.seconds_per_batch_mean for row in line], **style)
        for row in line:
            whisker(panels[0], row.useful_tokens or 0, row.seconds_per_batch_mean or np.nan,
                    row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high, color=style["color"])  # fmt: skip
        panels[1].plot(tokens, [row.peak_memory_mb or np.nan for row in line], **style)
    for panel, name in zip(panels, ("seconds per batch (95 % interval)", "peak memory (MB)"), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("useful tokens in the batch")
        panel.set_ylabel(name)
        clear_axes(panel)
    panels[0].legend(frameon=False, fontsize=7)
    section.figure = figure
    return section


def _lines(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.model == rows[0].model:
            found.setdefault((row.dataset, row.method), []).append(row)
    return found


def faults(records: Sequence[Record]) -> Section:
    """What each measuring fault of the authors' code is worth."""
    section = Section(
        "faults", "What each measuring fault of the authors' code is worth",
        "The same comparison with one fault of the published measuring code turned on, as multiples of the clean one.",
    )  # fmt: skip
    header, body, sources = faults_rows(records)
    section.table = Table(header, body, sources)
    if not body:
        section.notes = ["not run: nothing was recorded for it"]
    return section
