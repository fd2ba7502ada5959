"""What prompts waited under load: the table of a run, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..interval import Interval
from ..records.row import Row
from .cells import Column, as_markdown, estimate, fixed, make_table, significant
from .words import bullets, label, notes, validity

COLUMNS = (
    Column("Method"), Column("Policy"), Column("Prompts / s", significant), Column("TTFT mean (s)", estimate()),
    Column("p50 (s)", significant), Column("p90 (s)", significant), Column("p99 (s)", estimate()),
    Column("In the queue, mean (s)", significant), Column("Prompts / batch", fixed(1)),
    Column("Computed / useful", fixed(2)), Column("Busy (%)", fixed(0)),
    Column("Within the SLO / s", significant, "n/a"), Column("Kept up"),
)  # fmt: skip


def interval(value: float | None, low: float | None, high: float | None) -> Interval | float | None:
    """A figure with its interval, alone where there is none."""
    return value if value is None or low is None or high is None else Interval(value, low, high)


def kept_up(stable: bool | None) -> str:
    """Whether a device kept up, in a word."""
    return "cannot tell" if stable is None else "yes" if stable else "no"


def cells(row: Row) -> dict[str, Any]:
    """A row of the table."""
    return {
        "Method": label(row), "Policy": row.policy, "Prompts / s": row.rate,
        "TTFT mean (s)": interval(row.ttft_mean_s, row.ttft_mean_low_s, row.ttft_mean_high_s),
        "p50 (s)": row.ttft_p50_s, "p90 (s)": row.ttft_p90_s,
        "p99 (s)": interval(row.ttft_p99_s, row.ttft_p99_low_s, row.ttft_p99_high_s),
        "In the queue, mean (s)": row.queue_mean_s, "Prompts / batch": row.prompts_per_batch_mean,
        "Computed / useful": row.padding_ratio, "Busy (%)": None if row.busy_share is None else 100 * row.busy_share,
        "Within the SLO / s": row.goodput_per_s, "Kept up": kept_up(row.stable),
    }  # fmt: skip


def load_table(rows: Sequence[Row]) -> str:
    """A Markdown table of methods that served the same arrivals, readable as plain text."""
    blank = {column.label: "" for column in COLUMNS}
    body = [
        cells(row)
        if row.status == "ok"
        else blank | {"Method": label(row), "Policy": row.policy, "p50 (s)": row.status}
        for row in rows
    ]
    first = rows[0]
    slo = "" if first.slo_ms is None else f", first tokens within {first.slo_ms:g} ms wanted"
    heading = f"Arrivals: {first.arrivals}, {first.num_prompts:,} prompts, {first.clock} clock{slo}"
    said = [line for line in notes(rows) if not line.startswith(("†", "‡"))]  # of columns that stand elsewhere
    said += validity(rows)
    return "\n".join([heading, "", as_markdown(make_table(COLUMNS, body, ())), *bullets(said)])


def waited(row: Row) -> str:
    """What a run came to in a few words."""
    late = ", and it fell behind" if row.stable is False else ""
    return f"{label(row)} {row.rate:g}/s: p99 {1000 * (row.ttft_p99_s or 0.0):.0f} ms{late}"
