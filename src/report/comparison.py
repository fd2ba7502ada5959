"""The tables of one comparison: the authors' columns, the phases, and the ratios of its methods."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..prefilling.method import PHASES
from ..prefilling.methods import BASELINE, method_of
from ..records.row import Row
from ..records.store import Record
from .cells import Column, Marked, Spread, as_markdown, estimate, fixed, make_table, significant, spread, times
from .words import UNITS, bullets, label, notes, starred, validity

PER_PROMPT = "s / prompt, std over repeats"
OVER_BASE, OTHER_RATIOS = "Over full-batching", ("Over length-ordered", "Of ideal", "Of limit")
RATIOS_IN_WORDS = (
    "Of ideal: the fastest dense forward at hand (of older records transformers' own) over as many useful tokens in "
    "prompts of equal length, timed in turns with the methods. Of limit: the least operations or bytes at this "
    "machine's measured rates. An offline method (*) needs all prompts in advance."
)
OPERATIONS, ENERGY = "Useful TFLOP/s (of rate)", "J / 1,000 useful tokens"


def comparison_table(rows: Sequence[Row]) -> str:
    """A Markdown table of one comparison, readable as plain text: the authors' columns and the speedup.

    Args:
        rows: methods measured on one workload with one metric and protocol.
    """
    time = f"Avg {UNITS[rows[0].metric]} time /batch (s)"
    # The authors' command for whole datasets prints seconds a prompt, as batches of bins and of prompts are not alike.
    whole = any(method_of(row.method).packs_dataset for row in rows)
    columns = [
        Column("Method"), Column(time, fixed(3)), Column("Max util (%)", fixed(1), "n/a"),
        Column("Peak memory (MB)", fixed(0), "n/a"), Column("Mean util (%)", fixed(1), "n/a"),
        Column("Std time (s)", fixed(3), "n/a"), Column("Max util, std over repeats (%)", fixed(1), "n/a"),
        Column("Mean util, std over repeats (%)", fixed(1), "n/a"),
        Column(PER_PROMPT, spread(5)) if whole else Column("ms / prompt", significant),
        Column("Speedup over full-batching", times),
    ]  # fmt: skip
    body: list[dict[str, Any]] = []
    for row in rows:
        if row.status != "ok":
            blank = dict.fromkeys((column.label for column in columns), "")
            body.append(blank | {"Method": label(row), time: row.status})
            continue
        weak = "" if row.utilization_valid else "†"
        body.append({
            "Method": starred(row), time: per_batch(row),
            "Max util (%)": marked(row.max_utilization_pct, weak), "Peak memory (MB)": row.peak_memory_mb,
            "Mean util (%)": marked(row.mean_utilization_pct, weak), "Std time (s)": row.seconds_per_batch_std,
            "Max util, std over repeats (%)": row.max_utilization_std_pct,
            "Mean util, std over repeats (%)": row.mean_utilization_std_pct,
            **({PER_PROMPT: per_prompt_spread(row)} if whole else {"ms / prompt": per_prompt(row)}),
            "Speedup over full-batching": speedup(row),
        })  # fmt: skip
    text = as_markdown(make_table(columns, body, ()))
    return "\n".join([text, *bullets([*notes(rows), *validity(rows), *_other_runs(rows)])])


def _other_runs(rows: Sequence[Row]) -> list[str]:
    """Which methods of a table did not take turns with the others."""
    ran = Counter(row.comparison_id for row in rows)
    main = ran.most_common(1)[0][0]
    apart = [f"{label(row)} ({row.created_at[:16].replace('T', ' ')})" for row in rows if row.comparison_id != main]
    return [f"measured in runs of their own, not in turns with the others: {', '.join(apart)}"] if apart else []


def marked(value: Any, marks: str) -> Any:
    """A value with its marks; as it is where there are none."""
    return Marked(value, marks) if marks else value


def per_batch(row: Row | None) -> float | str | None:
    """Mean seconds a batch, or what became of it.

    There is nothing to compare where the batches are bins of all prompts, not what arrived together.
    """
    if row is None:
        return None
    if row.status == "ok" and method_of(row.method).packs_dataset:
        return "n/a"
    return row.status if row.seconds_per_batch_mean is None else row.seconds_per_batch_mean


def per_prompt(row: Row) -> float | None:
    """Mean milliseconds a prompt, which compares methods whatever their batches are."""
    return None if row.seconds_per_prompt_mean is None else 1000 * row.seconds_per_prompt_mean


def per_prompt_spread(row: Row) -> Spread | None:
    """Seconds a prompt and their standard deviation over repeats, as the authors' command for datasets has them."""
    mean, std = row.seconds_per_prompt_mean, row.seconds_per_prompt_std
    if mean is None:
        return None
    return Spread(mean, math.nan if std is None else std)


def speedup(row: Row | None) -> Any:
    """The speedup over full-batching with its interval and marks; 1 of full-batching itself."""
    if row is None or row.speedup_over_full_batching is None:
        return None
    if row.method == BASELINE:
        return 1.0
    return marked(row.interval("speedup_over_full_batching"), "§" if row.speedup_across_runs else "")


def phase_table(rows: Sequence[Row]) -> str:
    """Mean seconds per batch of each phase that any of the rows has."""
    phases = [phase for phase in PHASES if any(getattr(row, f"{phase}_s_mean") is not None for row in rows)]
    ratio = "computed / useful tokens"
    columns = [Column("Method"), *(Column(phase, fixed(4)) for phase in phases), Column(ratio, fixed(2))]
    body = [
        {"Method": label(row), ratio: row.padding_ratio}
        | {phase: getattr(row, f"{phase}_s_mean") for phase in phases}
        for row in rows
    ]  # fmt: skip
    return as_markdown(make_table(columns, body, ()))


def ratio_table(groups: Iterable[Sequence[Record]]) -> str:
    """Every method of every comparison as ratios: over both baselines, of the ideal, of the limit."""
    rows = [record.row for group in groups for record in group]
    rows = [row for row in rows if row.protocol == "modern" and not row.faults]
    columns = [
        Column("Model, type, prompts"), Column("batch"), Column("method"),
        *ratio_columns(), *cost_columns(rows),
        Column("s / batch", fixed(3)), Column("ms / prompt", significant),
    ]  # fmt: skip
    body = []
    for row in rows:
        what = {"Model, type, prompts": f"{row.model}, {row.dtype}, {row.dataset}", "batch": row.batch_size,
                "method": starred(row)}  # fmt: skip
        if row.status != "ok":
            body.append(what | {OVER_BASE: row.status})
            continue
        times_of = {"s / batch": per_batch(row), "ms / prompt": per_prompt(row)}
        body.append(what | ratios_of(row) | costs_of(row, columns) | times_of)
    return as_markdown(make_table(columns, body, ()))


def ratio_columns() -> list[Column]:
    """Columns of a row's time as ratios."""
    shown = (times, times, estimate(), fixed(2))
    return [Column(name, show) for name, show in zip((OVER_BASE, *OTHER_RATIOS), shown, strict=True)]


def ratios_of(row: Row) -> dict[str, Any]:
    """A row's cells of ``ratio_columns``."""
    ordered, ideal = row.interval("speedup_over_length_ordered"), row.interval("fraction_of_ideal")
    return dict(zip((OVER_BASE, *OTHER_RATIOS), (speedup(row), ordered, ideal, row.fraction_of_limit), strict=True))


def cost_columns(rows: Iterable[Row]) -> list[Column]:
    """The columns of what useful tokens cost that any of the rows has something for."""
    rows = list(rows)
    operations = any(row.useful_tflop_per_s is not None for row in rows)
    energy = any(row.joules_per_1000_useful_tokens is not None for row in rows)
    return [Column(OPERATIONS, significant)] * operations + [Column(ENERGY, significant)] * energy


def costs_of(row: Row, columns: Sequence[Column]) -> dict[str, Any]:
    """A row's cells of ``cost_columns``: ``0.12 (46 %)``, the share being of the measured rate, and joules."""
    share = "" if row.useful_share_of_rate is None else f"({100 * row.useful_share_of_rate:.0f} %)"
    cells = {OPERATIONS: marked(row.useful_tflop_per_s, share), ENERGY: row.joules_per_1000_useful_tokens}
    return {column.label: cells[column.label] for column in columns if column.label in cells}
