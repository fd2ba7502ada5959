"""The report as one HTML page that needs nothing else: claims, then each section, then the records behind them."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib import pyplot

from ..records.store import Record
from . import files, svg
from .entries import Entry, anchor, entry, link, origin
from .section import VERDICTS, Section

PAGE = "report.html"
MOST_CLAIM_LINES = 10


@dataclass(frozen=True)
class RecordLink:
    """A run that a table's row is from, and its entry; None where the page has no record of it."""

    run_id: str
    entry: Entry | None


@dataclass(frozen=True)
class Cell:
    """A cell as it is written, and the number that its column sorts by; empty where it holds none."""

    text: str
    key: str


@dataclass
class SectionOnPage:
    """A section as the page shows it."""

    section: Section
    anchor: str
    body: list[list[Cell]]
    sources: list[list[RecordLink]]
    numeric: list[bool]
    files: list[tuple[str, str]] = field(default_factory=list)
    svg_file: str = ""
    figure: Markup | None = None
    plane: bool = False
    figure_number: int = 0
    table_number: int = 0


def write_report(
    title: str, subtitle: str, sections: Sequence[Section], records: Sequence[tuple[str, Record]], folder: Path
) -> list[Path]:
    """Write the page and each section's files into ``folder``, then close the figures; the page comes first.

    Every file appears whole or not at all, and the page, which links to the others, last.

    Args:
        records: each with its folder's path relative to ``folder``, in POSIX form: ``../cpu-x/prepacking-…``.

    Raises:
        OSError: a file cannot be written.
        ValueError: two sections share a name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as name:
        draft, written = Path(name), []
        if len({section.name for section in sections}) < len(sections):
            raise ValueError(f"two sections share a name: {', '.join(section.name for section in sections)}")
        for section in sections:
            written += files.write_section(section, draft)
        (draft / PAGE).write_text(render(title, subtitle, sections, records, with_files=True), encoding="utf-8")
        written.append(draft / PAGE)
        for file in written:
            os.replace(file, folder / file.name)
    for section in sections:
        if section.figure is not None:
            pyplot.close(section.figure)
    return [folder / file.name for file in reversed(written)]


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    records: Sequence[tuple[str, Record]],
    with_files: bool = False,
) -> str:
    """The page's HTML. Equal arguments give equal pages; figures stay open.

    Args:
        title, subtitle: of the page; the subtitle may be empty.
        records: each with the relative path of its folder, as seen from the page.
        with_files: whether the files of ``files.write_section`` lie beside the page, to be linked to.

    """
    taken: set[str] = set()
    entries = [entry(number, path, record, taken) for number, (path, record) in enumerate(records, start=1)]
    by_run: dict[str, list[Entry]] = {}
    for found in entries:
        by_run.setdefault(found.run_id, []).append(found)
    parts = _parts(sections, by_run, taken, with_files)
    verdicts = [claim.verdict for section in sections for claim in section.claims]
    text = _template().render(
        title=title,
        subtitle=subtitle,
        sections=parts,
        records=entries,
        origin=origin([record for _, record in records]),
        tally=[(verdict, verdicts.count(verdict)) for verdict in VERDICTS if verdict in verdicts],
    )
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text


def claims_lines(sections: Sequence[Section]) -> list[str]:
    """What summary.md begins with: each claim on a line of Markdown; at most ten, the last says what is left out."""
    claims = [claim for section in sections for claim in section.claims]
    lines = []
    for claim in claims:
        figures = [f"here {claim.ours}" if claim.ours else "", f"paper {claim.paper}" if claim.paper else ""]
        beside = f" ({'; '.join(figure for figure in figures if figure)})" if any(figures) else ""
        lines.append(files.markdown_line(f"- **{claim.verdict}**: {claim.text.rstrip('.')}{beside}. {claim.judged()}"))
    if len(lines) > MOST_CLAIM_LINES:
        left = [claim.verdict for claim in claims[MOST_CLAIM_LINES - 1 :]]
        counts = ", ".join(f"{left.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in left)
        lines[MOST_CLAIM_LINES - 1 :] = [f"- and {len(left)} more ({counts}): see {PAGE}"]
    return lines


def _parts(
    sections: Sequence[Section], by_run: dict[str, list[Entry]], taken: set[str], with_files: bool
) -> list[SectionOnPage]:
    parts: list[SectionOnPage] = []
    figures = tables = 0
    for section in sections:
        table = section.table
        cells = zip(table.texts(), table.sort_keys(), strict=True)
        body = [
            [Cell(text, "" if key is None else f"{key!r}") for text, key in zip(texts, keys, strict=True)]
            for texts, keys in cells
        ]
        sources = [[source for run_id in run_ids for source in _sources(run_id, by_run)] for run_ids in table.records]
        part = SectionOnPage(section, anchor("section", section.name, taken), body, sources, table.numeric())
        if table.header:
            tables += 1
            part.table_number = tables
        if section.figure is not None:
            figures += 1
            part.figure_number = figures
            part.figure = Markup(svg.inline(section.figure, part.anchor, f"{section.title}. {section.lead}"))
            part.plane = svg.plane(section.figure)
        if with_files:
            kinds = (*(files.TABLE_FILES if table.header else ()), *(files.FIGURE_FILES if part.figure else ()))
            part.files = [(kind.upper(), link(f"{section.name}.{kind}")) for kind in kinds]
            part.svg_file = link(f"{section.name}.svg") if part.figure else ""
        parts.append(part)
    return parts


def _sources(run_id: str, by_run: dict[str, list[Entry]]) -> list[RecordLink]:
    return [RecordLink(run_id, found) for found in by_run.get(run_id, [])] or [RecordLink(run_id, None)]


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["integrity"] = _integrity
    return environment.get_template("page.html")


def _integrity(script: str) -> str:
    """What the page's policy lets run: this very script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
