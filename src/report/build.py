"""The report of a results folder: the page, its experiments' files, summary.csv and summary.md, written below it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cli import UserError
from ..places import command_line, slug
from ..records import groups as groups_of
from ..records.groups import Comparison
from ..records.store import Record, read_all
from . import page, plots, words
from .cells import as_markdown
from .comparison import comparison_table, phase_table
from .export import write_exports
from .section import Section, make, modules
from .waiting import load_table

OTHERS = "others"  # the section of measurements that are of no experiment; there is none where there are none
MOST_PANELS = 12  # of the plot of comparisons: the newest


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        folder: that it is in.
        files: summary.md first; a folder where it is one of several machines'.
        records: that are shown: of the same work measured several times those of one run.
        machines: by run id, what each was measured on.
        sections: by machine.
    """

    folder: Path
    files: list[Path]
    records: list[Record]
    machines: dict[str, str]
    sections: dict[str, list[Section]]

    @property
    def newest(self) -> str:
        """The machine that was measured last."""
        return self.machines[max(self.records, key=lambda record: record.row.created_at).row.run_id]

    @property
    def every_file(self) -> list[Path]:
        """All files, those of each machine among them."""
        below = [file.rglob("*") if file.is_dir() else [file] for file in self.files]
        return [file for files in below for file in files if file.is_file()]

    def records_of(self, machine: str) -> list[Record]:
        """The records of a machine."""
        return [record for record in self.records if self.machines[record.row.run_id] == machine]

    def page(self, machine: str) -> Path:
        """The page of a machine."""
        return _folder_of(machine, self.sections, self.folder) / page.PAGE


def report_on(results_dir: Path, out_dir: Path | None = None, exports: bool = False) -> Report:
    """Write the report of all records below ``results_dir``.

    A folder that holds records of several machines gets a report of each machine's below ``report/<machine>/``.

    Args:
        exports: also write the records for other tools.

    Raises:
        UserError: no folder, no readable record in it, or the report cannot be written.
    """
    if not results_dir.is_dir():
        raise UserError("results_dir", f"there is no folder '{results_dir}'", "name a folder that holds records")
    records = list(read_all(results_dir))
    if not records:
        raise UserError(
            "results_dir",
            f"no readable record below '{results_dir}'",
            f"measure first: {command_line('run')}, {command_line('reproduce')}",
        )
    out_dir = out_dir or results_dir / "report"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out_dir) as folder:
            draft = Path(folder)
            groups, sections = _write(records, results_dir, draft, out_dir)
            if exports:
                write_exports(records, draft)
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
    shown = [record for group in groups for record in group.shown]
    every = [record.row for group in groups for record in (*group.shown, *group.others)]
    return Report(out_dir, written, shown, groups_of.machines(every), sections)


def sections_of(records: Sequence[Record]) -> dict[str, list[Section]]:
    """Every experiment's section, by the machine that it was measured on, with the software where that differs.

    Who measured nothing but prompts or settings of their own did not put the paper to the test: sections of experiments
    that were not run are then left out, and their claims with them.
    """
    names = groups_of.machines([record.row for record in records])
    found = {}
    for machine in sorted(set(names.values())):
        own = [record for record in records if names[record.row.run_id] == machine]
        made = [make(module, own) for module in modules()]
        tested = _of_experiments(own)
        found[machine] = [section for section in made if len(section.table) or (tested and section.name != OTHERS)]
    return found


def _of_experiments(records: Sequence[Record]) -> bool:
    """Whether any was measured for an experiment."""
    return any(record.row.experiment for record in records)


def _folder_of(machine: str, by_machine: dict[str, list[Section]], folder: Path) -> Path:
    """Where a machine's files lie below the report's folder."""
    return folder if len(by_machine) == 1 else folder / slug(machine)


def _write(
    every: Sequence[Record], results_dir: Path, draft: Path, out_dir: Path
) -> tuple[list[Comparison], dict[str, list[Section]]]:
    groups = groups_of.comparisons(every)
    every = [record for group in groups for record in (*group.shown, *group.others)]  # speedups across runs filled in
    names = groups_of.machines([record.row for record in every])
    by_device = sections_of(every)
    plotted = plots.prompt_lengths([group.shown for group in groups], draft / "prompt_lengths")
    (draft / "summary.md").write_text(summary(groups, by_device, bool(plotted)), encoding="utf-8")
    for device, sections in by_device.items():
        folder = _folder_of(device, by_device, draft)
        records = [record for record in every if names[record.row.run_id] == device]
        final = out_dir if folder is draft else out_dir / folder.name
        # Links out of the results folder would reveal other folders of this machine.
        inside = final.resolve().is_relative_to(results_dir.resolve())
        places = [
            Path(os.path.relpath(record.folder, final)).as_posix() if inside and record.folder else record.row.run_id
            for record in records
        ]
        of_experiments = [section for section in sections if section.name != OTHERS]
        measured = sum(bool(len(section.table)) for section in of_experiments)
        if _of_experiments(records):
            subtitle = f"{measured} of {len(of_experiments)} experiments were run, {len(records)} records."
        else:
            subtitle = f"{len(records)} records, each measured by itself and for no experiment."
        page.write_report(f"Prefill on {device}", subtitle, sections, list(zip(places, records, strict=True)), folder)
    groups_of.summary(groups).to_csv(draft / "summary.csv", index=False)
    together = [group for group in groups if not group.rows[0].arrivals]  # batches that formed by themselves differ
    newest = sorted(together, key=lambda group: max(row.created_at for row in group.rows))[-MOST_PANELS:]
    if newest:
        plots.time_per_batch([group.shown for group in groups if group in newest], draft / "time_per_batch")
    return groups, by_device


def summary(groups: list[Comparison], by_device: dict[str, list[Section]], lengths: bool) -> str:
    """summary.md: the experiments, then every comparison's table, its phases, and where the figures come from.

    Args:
        lengths: whether there is a plot of the prompts' lengths.
    """
    parts = ["# Prefill measurements", ""]
    for device, sections in by_device.items():
        if any(len(section.table) for section in sections) and any(section.claims for section in sections):
            parts += [f"## The paper's claims on {device}", "", *page.claims_lines(sections), ""]
    for device, sections in by_device.items():
        for section in sections:
            if len(section.table):
                parts += [f"## {section.title}, {device}", "", section.lead, ""]
                parts += [as_markdown(section.table), *words.bullets(section.notes), ""]
    names = groups_of.machines([row for group in groups for row in group.rows])
    for group in groups:
        first = group.rows[0]
        parts += [f"## {words.title(first, names[first.run_id])}", ""]
        parts += [load_table(group.rows) if first.arrivals else comparison_table(group.rows), ""]
        if group.others:
            parts += [f"{len(group.others)} more measurements of these methods, of other runs: see summary.csv", ""]
        parts += ["Mean seconds per batch by phase:", "", phase_table(group.rows), ""]
        parts += [words.provenance(group.shown), ""]
    if any(not group.rows[0].arrivals for group in groups):
        parts += ["![Time per batch by method](time_per_batch.png)", ""]
    if lengths:
        parts += ["![Prompt lengths](prompt_lengths.png)", ""]
    return "\n".join(parts)
