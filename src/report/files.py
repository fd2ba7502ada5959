"""A section's files: its table as CSV, Markdown and LaTeX, its figure as PNG and SVG."""

# ruff: noqa: RUF001 (signs that look like others are what this file is about)

from __future__ import annotations

import csv
import re
import unicodedata
from pathlib import Path

from src.report import plots
from src.report.section import Section, Table
from src.report.tables import markdown

TABLE_FILES, FIGURE_FILES = ("csv", "md", "tex"), plots.FORMATS

# A number as tables write it, alone or before its unit, its interval or a footnote's sign: 6.21x [5.80, 6.60] ‡
NUMBER = re.compile(r"[<>≤≥≈~±]?\s*([-+−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+−]?\d+)?)\s?[x×%]?(?=$|[\s\[*†‡])")

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
        ValueError: a row of the table has more or fewer cells than its header.
    """
    written = []
    if section.table.header:
        check(section.table)
        for kind, text in (("md", markdown_text(section)), ("tex", latex(section))):
            target = folder / f"{section.name}.{kind}"
            target.write_text(text, encoding="utf-8")
            written.append(target)
        written.insert(0, _write_csv(section.table, folder / f"{section.name}.csv"))
    if section.figure is not None:
        written += plots.save(section.figure, folder / section.name)
    return written


def check(table: Table) -> None:
    """Nothing, where every row has a cell for each column and, where any row names records, all rows do.

    Raises:
        ValueError: the table is not so.
    """
    for row in table.body:
        if len(row) != len(table.header):
            raise ValueError(f"a row of {len(row)} cells below {len(table.header)} columns: {list(row)}")
    if table.records and len(table.records) != len(table.body):
        raise ValueError(f"{len(table.body)} rows, but records for {len(table.records)}")


def _write_csv(table: Table, target: Path) -> Path:
    """The table, and in a last column the run ids that each row is from."""
    with target.open("w", encoding="utf-8", errors="replace", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow([*table.header, *(["records"] if table.records else [])])
        for place, row in enumerate(table.body):
            out.writerow([*row, *([" ".join(table.records[place])] if table.records else [])])
    return target


def markdown_text(section: Section) -> str:
    """Heading, lead, table and notes in Markdown; a pipe or a tag in a cell stays text."""
    line, given = markdown_line, section.table
    table = markdown([*map(line, given.header)], [[*map(line, row)] for row in given.body])
    parts = [f"# {line(section.title)}", line(section.lead), table, "\n".join(f"- {line(n)}" for n in section.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_line(text: str) -> str:
    """``text`` on one line, its pipes, tags and backslashes escaped for Markdown."""
    return re.sub(r"([|<\\])", r"\\\1", one_line(text))


def latex(section: Section) -> str:
    """The table in LaTeX, for ``\\input``; it needs the package booktabs."""
    table = section.table
    columns = "".join("r" if right else "l" for right in numeric_columns(table))
    lines = [" & ".join(map(tex, row)) + r" \\" for row in table.body]
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


def sort_key(cell: str) -> float | None:
    """The number that a cell begins with, None where it does not begin with one (``n/a``, ``oom``, empty)."""
    found = NUMBER.match(cell.strip())
    return float(found[1].replace(",", "").replace("−", "-")) if found else None


def numeric_columns(table: Table) -> list[bool]:
    """For each column whether it holds numbers: at least one, and for the rest words without any digit."""
    result = []
    for column in range(len(table.header)):
        cells = [row[column] for row in table.body]
        known = [cell for cell in cells if sort_key(cell) is not None]
        result.append(bool(known) and all(cell in known or not re.search(r"\d", cell) for cell in cells))
    return result
