"""The page of a report: one HTML file that needs no network, and the files of each section beside it."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib
import pandas
from markupsafe import Markup

from src.measure.records import Record
from src.report import plots
from src.report.section import Section
from src.report.tables import markdown

MARKS = {"agrees": "✓", "differs": "≠", "not run": "○"}  # told apart by shape, too
ID = re.compile(r'(\bid="|url\(#|xlink:href="#)')


def render(title: str, subtitle: str, sections: Sequence[Section], records: Sequence[tuple[str, Record]]) -> str:
    """The page as HTML.

    Args:
        sections: in their order; those without rows are named as not run.
        records: each with the path of its folder, relative to the page.
    """
    return _template().render(
        title=title, subtitle=subtitle, sections=sections, records=records, MARKS=MARKS, svg=_svg, made=_made
    )


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "page.html"
    )


def write_section(section: Section, folder: Path) -> None:
    """A section's table as CSV, Markdown and LaTeX (booktabs), its figure as PNG and SVG."""
    frame = pandas.DataFrame([list(cells) for cells in section.table.body], columns=list(section.table.header))
    frame.to_csv(folder / f"{section.name}.csv", index=False)
    text = [markdown(section.table.header, section.table.body), *([""] if section.notes else []), *section.notes]
    (folder / f"{section.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    columns = "l" + "r" * (len(section.table.header) - 1)
    # pandas escapes cells with escape=True, but not the header.
    frame.columns = pandas.Index([_escaped(name) for name in frame.columns])
    latex = frame.to_latex(index=False, escape=False, column_format=columns, formatters=[_escaped] * len(frame.columns))
    (folder / f"{section.name}.tex").write_text(latex, encoding="utf-8")
    if section.figure:
        plots.save(section.figure, folder / section.name)


LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "µ": r"\textmu{}", "²": r"\textsuperscript{2}",
    "†": r"\dag{}", "‡": r"\ddag{}",
})  # fmt: skip


def _escaped(text: str) -> str:
    return text.translate(LATEX)


def _svg(section: Section) -> Markup:
    """The figure to stand in the page, its ids its own."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": section.name}):
        section.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    drawing = file.getvalue()
    return Markup(ID.sub(rf"\g<1>{section.name}-", drawing[drawing.index("<svg") :]))


def _made(record: Record) -> str:
    """Where and with what a record was made."""
    made, packages = record.manifest, record.manifest.get("packages", {})
    commit = str(made.get("git_commit") or "unknown")[:12] + (", changed" if made.get("git_dirty") else "")
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if packages.get(name))
    return f"{record.row.device_name}; {versions}; commit {commit}; {record.row.created_at}"
