"""The report of a results folder: the page, its experiments' files, summary.csv and summary.md, written below it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from src.cli import UserError
from src.measure.machine import slug
from src.measure.records import Record
from src.report import aggregate, batch_sizes, beyond, experiments, memory, page, plots, tables, today
from src.report.aggregate import Comparison
from src.report.section import Section, Table

MOST_PANELS = 12  # of the plot of comparisons: the newest
RATIOS = (
    "Of ideal: a dense forward of the model's own code over as many useful tokens in prompts of equal length, timed in "
    "turns with the methods. Of limit: the least operations or bytes at this machine's measured rates. An offline "
    "method (*) needs all prompts in advance."
)
# In the order of the report: the paper's, then what goes beyond it.
SECTIONS: tuple[Callable[[Sequence[Record]], Section], ...] = (
    experiments.readme_table, experiments.time_by_dataset, batch_sizes.speedup_by_batch_size, experiments.dataset_level,
    batch_sizes.batch_cost, batch_sizes.speedup_predictors, memory.memory_and_utilization, memory.largest_batch,
    beyond.generation, today.today, today.traces, beyond.scaling, beyond.faults,
)  # fmt: skip


def build(results_dir: Path, out_dir: Path | None = None) -> list[Path]:
    """Write the report of all records below ``results_dir`` and return the files, summary.md first.

    A folder that holds records of several machines gets a report of each machine's below ``report/<machine>/``.

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
            _write(groups, results_dir, draft, out_dir)
            written = []
            for file in sorted(draft.iterdir(), key=lambda file: (file.name != "summary.md", file.name)):
                if file.is_dir():  # one of several machines'
                    shutil.rmtree(out_dir / file.name, ignore_errors=True)
                os.replace(file, out_dir / file.name)
                written.append(out_dir / file.name)
    except OSError as error:
        raise UserError(
            "out_dir", f"cannot write '{out_dir}' ({error.strerror or error})", "name a writable folder"
        ) from None
    return written


def sections_of(groups: list[Comparison]) -> dict[str, list[Section]]:
    """Every experiment's section, by the machine that it was measured on, with the software where that differs."""
    records = [record for group in groups for record in group.shown]
    names = aggregate.machines([record.row for record in records])
    found = {
        machine: [make([record for record in records if names[record.row.run_id] == machine]) for make in SECTIONS]
        for machine in sorted(set(names.values()))
    }
    for section in (section for sections in found.values() for section in sections):
        if not section.table.body:  # not run: no empty panel
            section.table = Table((), ())
    return found


def _write(groups: list[Comparison], results_dir: Path, draft: Path, out_dir: Path) -> None:
    every = [record for group in groups for record in (*group.shown, *group.others)]
    names = aggregate.machines([record.row for record in every])
    by_device = sections_of(groups)
    (draft / "summary.md").write_text(summary(groups, by_device), encoding="utf-8")
    for device, sections in by_device.items():
        folder = draft if len(by_device) == 1 else draft / slug(device)
        records = [record for record in every if names[record.row.run_id] == device]
        final = out_dir if folder is draft else out_dir / folder.name
        # Where the report lies elsewhere, its links would tell the reader of other folders of this machine.
        inside = final.resolve().is_relative_to(results_dir.resolve())
        places = [
            Path(os.path.relpath(record.folder, final)).as_posix() if inside and record.folder else record.row.run_id
            for record in records
        ]
        measured = sum(bool(section.table.body) for section in sections)
        subtitle = f"{measured} of {len(sections)} experiments were run, {len(records)} records."
        page.write_report(f"Prefill on {device}", subtitle, sections, list(zip(places, records, strict=True)), folder)
    aggregate.summary(groups).to_csv(draft / "summary.csv", index=False)
    newest = sorted(groups, key=lambda group: max(row.created_at for row in group.rows))[-MOST_PANELS:]
    plots.time_per_batch([group.shown for group in groups if group in newest], draft / "time_per_batch")
    plots.prompt_lengths([group.shown for group in groups], draft / "prompt_lengths")


def summary(groups: list[Comparison], by_device: dict[str, list[Section]]) -> str:
    """summary.md: the experiments, then every comparison's table, its phases, and where the figures come from."""
    parts = ["# Prefill measurements", ""]
    for device, sections in by_device.items():
        if any(section.table.body for section in sections):
            parts += [f"## The paper's claims on {device}", "", *page.claims_lines(sections), ""]
    for device, sections in by_device.items():
        for section in sections:
            if section.table.body:
                parts += [f"## {section.title}, {device}", "", section.lead, ""]
                parts += [tables.markdown(section.table.header, section.table.body), *tables.bullets(section.notes), ""]
    names = aggregate.machines([row for group in groups for row in group.rows])
    for group in groups:
        first = group.rows[0]
        parts += [f"## {tables.title(first, names[first.run_id])}", "", tables.comparison_table(group.rows), ""]
        if group.others:
            parts += [f"{len(group.others)} more measurements of these methods, of other runs: see summary.csv", ""]
        parts += ["Mean seconds per batch by phase:", "", tables.phase_table(group.rows), ""]
        parts += [tables.provenance(group.shown), ""]
    parts += ["![Time per batch by method](time_per_batch.png)", "", "![Prompt lengths](prompt_lengths.png)", ""]
    return "\n".join(parts)
