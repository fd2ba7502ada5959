"""What each measuring fault of the authors' code is worth, from records made with it and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...config import REFERENCE
from ...measure.faults import resolve
from ...records.row import HOW, MACHINE, WORK, Row, key
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table
from ..section import Claim
from ..select import over
from ..words import label

PLACE = 17
TITLE = "What each measuring fault of the authors' code is worth"
LEAD = (
    "The same comparison with one fault of the published measuring code turned on, as multiples of the clean one. Each "
    "is a run of its own, so that these are ratios of two runs, which differ by some percent anyway."
)
FIGURES = {
    "speedup_over_full_batching": "Speedup",
    "seconds_per_batch_mean": "Seconds per batch",
    "seconds_per_prompt_mean": "Seconds per prompt",
    "peak_memory_mb": "Peak memory",
    "mean_utilization_pct": "Mean util",
}
COLUMNS = (
    Column("Fault"), Column("Measured"), Column("Method"), *(Column(label, fixed(2)) for label in FIGURES.values()),
)  # fmt: skip
Found = list[tuple[Row, Row]]  # with a fault, and clean


def select(records: Sequence[Record]) -> Found:
    """Rows with a fault, each with the clean row that is the same but for the fault."""
    rows = [record.row for record in records if record.row.status == "ok"]
    clean = {_but_for_the_fault(row): row for row in rows if not row.faults}
    return [(row, clean[kind]) for row in rows if row.faults and (kind := _but_for_the_fault(row)) in clean]


def _but_for_the_fault(row: Row) -> tuple[object, ...]:
    return key(row, WORK, HOW, MACHINE, but=("faults",))


def table(found: Found) -> Table:
    """A row for each fault and method."""
    body = []
    for row, clean in found:
        every = " ".join(resolve([REFERENCE], row.protocol, row.metric))
        name = f"all {len(every.split())} (reference)" if row.faults == every else row.faults
        line: dict[str, Any] = {"Fault": name, "Measured": f"{row.metric} {row.protocol}", "Method": label(row)}
        for column, heading in FIGURES.items():
            line[heading] = over(getattr(row, column), getattr(clean, column))
        body.append(line)
    return make_table(COLUMNS, body, [[row.run_id, clean.run_id] for row, clean in found])


def claims(found: Found) -> list[Claim]:
    """The paper claims nothing of this."""
    return []


def figure(found: Found) -> None:
    """There is nothing to draw."""
