"""The report of a results folder: summary.csv, summary.md and the plots, written below it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from src.cli import UserError
from src.measure.records import Record
from src.report import aggregate, plots, tables
from src.report.faults import faults_table

RATIOS = (
    "Of ideal: a dense forward of the model's own code over as many useful tokens in prompts of equal length, timed in "
    "turns with the methods. Of limit: the least operations or bytes at this machine's measured rates. An offline "
    "method (*) needs all prompts in advance."
)


def build(results_dir: Path, out_dir: Path | None = None) -> list[Path]:
    """Write the report of all records below ``results_dir`` and return the files, summary.md first.

    Raises:
        UserError: no folder, no readable record in it, or the report cannot be written.
    """
    if not results_dir.is_dir():
        raise UserError("results_dir", f"there is no folder '{results_dir}'", "name a folder that holds records")
    groups = aggregate.comparisons(results_dir)
    if not groups:
        raise UserError(
            "results_dir",
            f"no readable record below '{results_dir}'",
            "measure first: python -m src.run, make reproduce",
        )
    out_dir = out_dir or results_dir / "report"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out_dir) as folder:
            draft = Path(folder)
            (draft / "summary.md").write_text(page(groups), encoding="utf-8")
            aggregate.summary(groups).to_csv(draft / "summary.csv", index=False)
            plots.time_per_batch(groups, draft / "time_per_batch")
            plots.prompt_lengths(groups, draft / "prompt_lengths")
            written = []
            for file in sorted(draft.iterdir(), key=lambda file: (file.suffix != ".md", file.name)):
                os.replace(file, out_dir / file.name)
                written.append(out_dir / file.name)
    except OSError as error:
        raise UserError(
            "out_dir", f"cannot write '{out_dir}' ({error.strerror or error})", "name a writable folder"
        ) from None
    return written


def page(groups: Sequence[Sequence[Record]]) -> str:
    """summary.md: every comparison's table, its phases, and where the figures come from."""
    parts = ["# Prefill measurements", ""]
    for group in groups:
        rows = [record.row for record in group]
        parts += [
            f"## {tables.title(rows[0])}",
            "",
            tables.comparison_table(rows),
            "",
            "Mean seconds per batch by phase:",
            "",
        ]
        parts += [tables.phase_table(rows), "", tables.provenance(group), ""]
    if any(record.row.fraction_of_ideal is not None for group in groups for record in group):
        parts += ["## Side by side", "", tables.ratio_table(groups), "", RATIOS, ""]
    if table := faults_table(groups):
        parts += ["## What each measuring fault is worth", "", "With the fault, over without it:", "", table, ""]
    parts += ["![Time per batch by method](time_per_batch.png)", "", "![Prompt lengths](prompt_lengths.png)", ""]
    return "\n".join(parts)
