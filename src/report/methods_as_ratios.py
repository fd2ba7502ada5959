"""Every method as ratios beside the baselines, the ideal and the limit: what the sections of today and traces share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from ..records.groups import Methods, in_turns, place_of
from ..records.row import Row
from .cells import Column, Table, fixed, make_table, significant
from .comparison import cost_columns, costs_of, per_batch, per_prompt, ratio_columns, ratios_of
from .plots import finish_axes, grouped_bars, legend, room, titled, whisker
from .section import Claim
from .select import BASE
from .words import model_name, starred
from .words import notes as notes_of

Found = list[Methods]  # of each comparison the methods, in the order of the table
# What a comparison is of.
KIND = ("dataset", "model", "loadbit", "dtype", "longest_prompt_tokens", "batch_size", "num_prompts", "forward")
# What a panel shows of each method: its column, and what the axis is called.
RATIOS = {"speedup_over_full_batching": "speedup over full-batching", "fraction_of_ideal": "fraction of ideal"}
USEFUL = "useful_tflop_per_s"
# What useful tokens cost: a panel each, where any row has it.
COSTS = {USEFUL: "useful TFLOP/s", "joules_per_1000_useful_tokens": "J per 1,000 useful tokens"}


def select_comparisons(rows: Sequence[Row]) -> Found:
    """Comparisons of which anything was measured, in the order of the table, their methods too."""
    found = sorted(in_turns(rows, *KIND).items(), key=_by_columns)
    groups = [methods for _, methods in found if any(row.status == "ok" for row in methods.values())]
    return [{name: methods[name] for name in sorted(methods, key=place_of)} for methods in groups]


def _by_columns(item: tuple[tuple[Any, ...], object]) -> tuple[tuple[bool, Any], ...]:
    """Sorts by each column in turn, numbers as numbers; what has none comes last."""
    return tuple((value is None, value) for value in item[0])


def table(found: Found) -> Table:
    """A row for each method of each comparison."""
    rows = [row for methods in found for row in methods.values()]
    columns = [
        Column("Method"), Column("Dataset"), Column("Model, type"), Column("Batch"), Column("Longest (tokens)"),
        Column("s / batch", fixed(3)), Column("ms / prompt", significant), *ratio_columns(),
        *cost_columns(rows),
    ]  # fmt: skip
    body = [
        {"Method": starred(row), "Dataset": row.dataset, "Model, type": f"{model_name(row)}, {row.dtype}",
         "Batch": row.batch_size, "Longest (tokens)": row.longest_prompt_tokens, "s / batch": per_batch(row),
         "ms / prompt": per_prompt(row), **ratios_of(row), **costs_of(row, columns)}
        for row in rows
    ]  # fmt: skip
    return make_table(columns, body, [[row.run_id] for row in rows])


def notes(found: Found) -> list[str]:
    """What must stand below the table."""
    return notes_of([row for methods in found for row in methods.values()])


def claims(found: Found) -> list[Claim]:
    """The paper claims nothing of this."""
    return []


def figure(found: Found) -> Any:
    """A line of panels for each workload: its methods' ratios as the batch grows, and what their useful tokens cost.

    What no row has, has no panel: older records know no operations, and only some GPUs count energy.
    """
    workloads: dict[tuple[object, ...], dict[int, Methods]] = {}
    for methods in found:  # of two with one batch size the later one, which has more prompts, stands
        if BASE in methods:
            row = next((row for row in methods.values() if row.forward), methods[BASE])
            # The length at which prompts are cut tells workloads apart; the longest prompt of a sample does not.
            cut = row.longest_prompt_tokens if row.longest_prompt_tokens == row.dataset_max_tokens else None
            kind = (row.dataset, row.model, row.loadbit, row.dtype, row.forward, cut)
            workloads.setdefault(kind, {})[row.batch_size] = methods
    panels = [dict(sorted(by_size.items())) for by_size in workloads.values()]
    if not panels:
        return None
    every = [row for by_size in panels for methods in by_size.values() for row in methods.values()]
    shown = [column for column in COSTS if any(getattr(row, column) is not None for row in every)]
    wide = len(RATIOS) + len(shown)
    drawn, axes = plt.subplots(
        len(panels),
        wide,
        figsize=(13 if wide == 2 else 5 * wide, 0.5 + 2.7 * len(panels)),
        squeeze=False,
        layout="constrained",
    )
    for line, by_size in zip(axes, panels, strict=True):
        rows = [row for methods in by_size.values() for row in methods.values()]
        names = sorted({row.method for row in rows}, key=place_of)
        for panel, (column, name) in zip(line[: len(RATIOS)], RATIOS.items(), strict=True):
            for x, row in grouped_bars(panel, [*by_size.values()], names, column):
                if (row.method, column) != (BASE, "speedup_over_full_batching"):  # which is 1 by definition
                    whisker(panel, x, row.interval(column))
            panel.axhline(1, color="black", linewidth=0.8)
            panel.set_ylim(0, room(row.interval(column) for row in rows) / 1.2)
            panel.set_ylabel(name)
        for panel, column in zip(line[len(RATIOS) :], shown, strict=True):
            if column == USEFUL:
                _operations(panel, [*by_size.values()], names)
            else:
                told = list(grouped_bars(panel, [*by_size.values()], names, column))
                if len(told) < sum(row.status == "ok" for row in rows):
                    panel.set_title("no bar: too short to tell" if told else "too short to tell", fontsize=8)
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
    legend(drawn, sorted(every_method, key=place_of))
    return drawn


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
