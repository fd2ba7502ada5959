"""What was measured by itself, for no experiment."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, significant
from ..comparison import per_batch, per_prompt, ratio_columns, ratios_of
from ..section import Claim
from ..words import UNITS, model_name, starred
from ..words import notes as notes_of

PLACE = 99
TITLE = "Other measurements"
LEAD = "What was measured by itself, for no experiment, each comparison's methods together."
TAKES = (None,)
COLUMNS = (
    Column("Dataset"), Column("Model, type"), Column("Metric"), Column("Protocol"), Column("Batch"), Column("Prompts"),
    Column("Method"), Column("s / batch", fixed(3)), Column("ms / prompt", significant), *ratio_columns(),
    Column("Peak memory (MB)", fixed(0), "n/a"),
)  # fmt: skip
Found = list[Row]


def select(records: Sequence[Record]) -> Found:
    """All of them, but for those with faults on demand, and those under load, which have a section of their own."""
    return [record.row for record in records if not record.row.faults and not record.row.arrivals]


def table(found: Found) -> Table:
    """A row for each method of each comparison."""
    body = [
        {"Dataset": row.dataset, "Model, type": f"{model_name(row)}, {row.dtype}", "Metric": UNITS[row.metric],
         "Protocol": row.protocol, "Batch": row.batch_size, "Prompts": row.num_prompts, "Method": starred(row),
         "s / batch": per_batch(row), "ms / prompt": per_prompt(row), **ratios_of(row),
         "Peak memory (MB)": row.peak_memory_mb}
        for row in found
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in found])


def notes(found: Found) -> list[str]:
    """What must stand below the table."""
    return notes_of(found)


def claims(found: Found) -> list[Claim]:
    """No claim of the paper is judged by them."""
    return []


def figure(found: Found) -> None:
    """There is nothing to draw."""
