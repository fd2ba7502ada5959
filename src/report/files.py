"""A section's files: its table as CSV, Markdown and LaTeX, its figure as PNG and SVG."""

# ruff: noqa: RUF001 (signs that look like others are what this file is about)

from __future__ import annotations

import csv
import re
import unicodedata
from pathlib import Path

from . import plots
from .cells import Table, markdown
from .section import Section

TABLE_FILES, FIGURE_FILES = ("csv", "md", "tex"), plots.FORMATS

# What LaTeX takes for a command, a ligature, or (* and [ after a line's end) an argument.
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\textasciigrave{}", "'": "'{}", "*": "{*}",
    "[": "{[}", "]": "{]}", "-": "-{}", "?": "?{}", "!": "!{}", "‘": "`{}", "’": "'{}", "“": "``{}", "”": "''{}",
    "–": "--{}", "—": "---{}", "…": r"\ldots{}", "†": r"\dag{}", "‡": r"\ddag{}", "×": r"$\times$", "±": r"$\pm$",
    "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "≠": r"$\neq$", "→": r"$\rightarrow$",
    "·": r"$\cdot$", "∞": r"$\infty$", "µ": r"$\mu$", "μ": r"$\mu$", "°": r"$^\circ$", "²": r"$^2$", "³": r"$^3$",
    "\u00a0": "~",
}  # fmt: skip


def write_section(section: Section, folder: Path) -> list[Path]:
    """Write ``<name>.csv``, ``.md``, ``.tex`` (with a table), ``.png`` and ``.svg`` (with a figure) into ``folder``.

    Equal sections give equal files. The figure stays open.

    Raises:
        OSError: a file cannot be written.
    """
    written = []
    if section.table.header:
        for kind, text in (("md", markdown_text(section)), ("tex", latex(section))):
            target = folder / f"{section.name}.{kind}"
            target.write_text(text, encoding="utf-8")
            written.append(target)
        written.insert(0, _write_csv(section.table, folder / f"{section.name}.csv"))
    if section.figure is not None:
        written += plots.save(section.figure, folder / section.name)
    return written


def _write_csv(table: Table, target: Path) -> Path:
    """The table, and in a last column the run ids that each row is from."""
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*table.header, *(["records"] if table.records else [])])
        for place, row in enumerate(table.texts()):
            out.writerow([*row, *([" ".join(table.records[place])] if table.records else [])])
    return target


def markdown_text(section: Section) -> str:
    """Heading, lead, table and notes in Markdown; a pipe or a tag in a cell stays text."""
    line, given = markdown_line, section.table
    table = markdown([*map(line, given.header)], [[*map(line, row)] for row in given.texts()])
    parts = [f"# {line(section.title)}", line(section.lead), table, "\n".join(f"- {line(n)}" for n in section.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_line(text: str) -> str:
    """``text`` on one line, its pipes, tags and backslashes escaped for Markdown."""
    return re.sub(r"([|<\\])", r"\\\1", one_line(text))


def latex(section: Section) -> str:
    """The table in LaTeX, for ``\\input``; it needs the package booktabs."""
    table = section.table
    columns = "".join("r" if right else "l" for right in table.numeric())
    lines = [" & ".join(map(tex, row)) + r" \\" for row in table.texts()]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(section.title)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', section.name)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(tex, table.header)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip{{\footnotesize {tex(note)}\par}}" for note in section.notes),
            r"\end{table}",
            "",
        ]
    )


def tex(text: str) -> str:
    """``text`` for LaTeX with any engine: special characters escaped, and what its fonts lack as U+ and a number."""
    return "".join(map(_tex_character, one_line(text)))


def _tex_character(character: str) -> str:
    if character in TEX:
        return TEX[character]
    # Every engine knows ASCII and the letters of Latin 1.
    known = character.isascii() or ("À" <= character <= "ÿ" and character.isalpha())
    return character if known else f"U+{ord(character):04X}"


def one_line(text: str) -> str:
    """``text`` with runs of white space as one space, and without control characters."""
    joined = " ".join(text.replace("\u00a0", "\0").split()).replace("\0", "\u00a0")
    return "".join(c for c in joined if unicodedata.category(c) not in {"Cc", "Cf", "Cs"})
