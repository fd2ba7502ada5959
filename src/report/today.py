"""Sections on what prepacking is worth today: every method beside the baselines, the ideal and the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt

from src.measure.records import Record
from src.measure.row import Row
from src.report.aggregate import place_of
from src.report.plots import finish_axes, grouped_bars, legend, room, titled, whisker
from src.report.section import Section, Table
from src.report.select import BASE, clean, pairs, seconds
from src.report.tables import cost_cells, cost_header, model_name, notes, per_prompt, ratio_cells, starred

Methods = dict[str, Row]
# What a comparison is of.
COLUMNS = ("dataset", "model", "loadbit", "dtype", "longest_prompt_tokens", "batch_size", "num_prompts", "forward")
# What a panel shows of each method: its column, its interval's, and what the axis is called.
RATIOS = (
    ("speedup_over_full_batching", "speedup_ci_low", "speedup_ci_high", "speedup over full-batching"),
    ("fraction_of_ideal", "fraction_of_ideal_ci_low", "fraction_of_ideal_ci_high", "fraction of ideal"),
)

USEFUL = "useful_tflop_per_s"
# What useful tokens cost: a panel each, where any row has it.
COSTS = {USEFUL: "useful TFLOP/s", "joules_per_1000_useful_tokens": "J per 1,000 useful tokens"}


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
    rows = clean(records, dataset=("azure-conv", "azure-code"), protocol="modern", metric="ttft")
    _ratios(section, rows, bool, cut=True)
    return section


def _ratios(section: Section, rows: Sequence[Row], wanted: Callable[[Methods], bool], cut: bool = False) -> None:
    """A table and a figure of methods as ratios, of the comparisons that are wanted.

    Args:
        cut: prompts are cut to a length, which sets workloads apart; else the longest is what a sample happens to hold.
    """
    kinds = pairs(rows, *COLUMNS)
    groups = {
        key: m for key, m in sorted(kinds.items(), key=_by_columns)
        if wanted(m) and any(r.status == "ok" for r in m.values())
    }  # fmt: skip
    body, sources = [], []
    costs = cost_header(row for methods in groups.values() for row in methods.values())
    for methods in groups.values():
        for name in sorted(methods, key=place_of):
            row = methods[name]
            body.append([
                starred(row), row.dataset,
                f"{model_name(row)}, {row.dtype}", str(row.batch_size), str(row.longest_prompt_tokens), seconds(row),
                per_prompt(row), *ratio_cells(row), *cost_cells(row, costs),
            ])  # fmt: skip
            sources.append([row.run_id])
    section.table = Table(
        ("Method", "Dataset", "Model, type", "Batch", "Longest (tokens)", "s / batch", "ms / prompt",
         "Over full-batching", "Over length-ordered", "Of ideal", "Of limit", *costs), body, sources,
    )  # fmt: skip
    section.notes = notes([row for m in groups.values() for row in m.values()]) if groups else []
    if not groups:
        section.notes = ["not run: nothing was recorded for it"]
        return
    panels: dict[tuple[object, ...], dict[int, Methods]] = {}
    for (*key, longest, size, _, forward), methods in groups.items():  # of two of one batch size, that of more prompts
        if BASE in methods:
            panels.setdefault((*key, forward, longest if cut else None), {})[int(str(size))] = methods
    if panels:
        section.figure = _figure([dict(sorted(by_size.items())) for by_size in panels.values()])


def _figure(panels: Sequence[dict[int, Methods]]) -> Any:
    """A line of panels for each workload: its methods' ratios as the batch grows, and what their useful tokens cost.

    What no row has, has no panel: older records know no operations, and only some GPUs count energy.
    """
    every = [row for by_size in panels for methods in by_size.values() for row in methods.values()]
    shown = [column for column in COSTS if any(getattr(row, column) is not None for row in every)]
    wide = len(RATIOS) + len(shown)
    figure, axes = plt.subplots(
        len(panels),
        wide,
        figsize=(13 if wide == 2 else 5 * wide, 0.5 + 2.7 * len(panels)),
        squeeze=False,
        layout="constrained",
    )
    for line, by_size in zip(axes, panels, strict=True):
        rows = [row for methods in by_size.values() for row in methods.values()]
        names = sorted({row.method for row in rows}, key=place_of)
        for panel, (column, low, high, name) in zip(line[: len(RATIOS)], RATIOS, strict=True):
            for x, row in grouped_bars(panel, [*by_size.values()], names, column):
                if (row.method, column) != (BASE, "speedup_over_full_batching"):  # which is 1 by definition
                    whisker(panel, x, getattr(row, column), getattr(row, low), getattr(row, high))
            panel.axhline(1, color="black", linewidth=0.8)
            panel.set_ylim(0, room([getattr(row, column) for row in rows], [getattr(row, high) for row in rows]) / 1.2)
            panel.set_ylabel(name)
        for panel, column in zip(line[len(RATIOS) :], shown, strict=True):
            if column == USEFUL:
                _operations(panel, [*by_size.values()], names)
            else:
                list(grouped_bars(panel, [*by_size.values()], names, column))
            panel.set_ylabel(COSTS[column])
        for panel in line:
            panel.set_xticks(range(len(by_size)), list(map(str, by_size)))
            beside = max(0.6, 1.5 / len(by_size))  # few bars are not drawn broader than many
            panel.set_xlim(-beside, len(by_size) - 1 + beside)
            panel.set_xlabel("batch size (prompts)")
            finish_axes(panel)
        row = next(iter(by_size.values()))[BASE]
        forward = [] if row.forward in {None, "fused"} else [f"forward of {row.forward}"]
        longest = max(row.longest_prompt_tokens or 0 for row in rows)
        line[0].set_title(titled(rows, f"prompts of up to {longest:,} tokens", *forward), fontsize=9, loc="left")
    every_method = {row.method for row in every}
    legend(figure, sorted(every_method, key=place_of))
    return figure


def _operations(panel: Any, groups: Sequence[Methods], names: Sequence[str]) -> None:
    """Bars of useful operations per second, what is computed beyond them in outline, the machine's rate as a line."""
    rows = [row for methods in groups for row in methods.values() if row.status == "ok"]
    for x, row in grouped_bars(panel, groups, names, USEFUL):
        if row.computed_tflop_per_s is not None:
            beyond = max(0.0, row.computed_tflop_per_s - (row.useful_tflop_per_s or 0.0))
            width = 0.93 * 0.81 / len(names)
            panel.bar(x, beyond, width, bottom=row.useful_tflop_per_s, facecolor="none", edgecolor="black",
                      linewidth=0.5)  # fmt: skip
    tops = [value for row in rows for value in (row.useful_tflop_per_s, row.computed_tflop_per_s) if value is not None]
    rates = [row.matmul_tflop_per_s for row in rows if row.matmul_tflop_per_s is not None]
    for rate in sorted({min(rates), max(rates)} if rates else ()):
        panel.axhline(rate, color="black", linewidth=0.8, linestyle=":")
    panel.set_ylim(0, 1.12 * max([*tops, *rates], default=1.0))
    panel.set_title("outlined: pads and other work beyond; dotted: rate of matrix products", fontsize=8)


def _by_columns(item: tuple[tuple[Any, ...], object]) -> tuple[tuple[bool, Any], ...]:
    """Sorts by each column in turn, numbers as numbers; what has none comes last."""
    return tuple((value is None, value) for value in item[0])
