"""What each measuring fault of the authors' code is worth, from records made with it and without."""

from __future__ import annotations

from collections.abc import Sequence

from src.config import QUIRKS
from src.measure.records import Record
from src.measure.row import HOW, MACHINE, WORK, Row, parts
from src.report.tables import label

FIGURES = {
    "speedup_over_full_batching": "Speedup",
    "seconds_per_batch_mean": "Seconds per batch",
    "seconds_per_prompt_mean": "Seconds per prompt",
    "peak_memory_mb": "Peak memory",
    "mean_utilization_pct": "Mean util",
}
SAME_BUT_FOR_THE_FAULT = tuple(name for part in (WORK, HOW, MACHINE) for name in parts(part) if name != "quirks")


def faults_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """The figures with each fault as multiples of the clean ones: header, rows, and the records of each row."""
    rows = [record.row for record in records if record.row.status == "ok"]

    def kind(row: Row) -> tuple[object, ...]:
        return tuple(getattr(row, name) for name in SAME_BUT_FOR_THE_FAULT)

    clean = {kind(row): row for row in rows if not row.quirks}
    body, sources = [], []
    for row in rows:
        if row.quirks and (base := clean.get(kind(row))):
            pairs = [(getattr(row, name), getattr(base, name)) for name in FIGURES]
            name = "all (reference)" if row.quirks.split() == list(QUIRKS) else row.quirks
            ratios = [
                f"{value / reference:.2f}" if value is not None and reference else "" for value, reference in pairs
            ]
            body.append([name, f"{row.metric} {row.protocol}", label(row), *ratios])
            sources.append([row.run_id, base.run_id])
    return ["Fault", "Measured", "Method", *FIGURES.values()], body, sources
