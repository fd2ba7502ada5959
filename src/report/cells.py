"""Tables of values. A cell is a number, an interval or a word; it is formatted once, when the table is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas

from ..interval import Interval

WIDEST = 20.0  # an interval whose ends differ by more is not shown
Format = Callable[[Any], str]


@dataclass(frozen=True)
class Marked:
    """A value with marks of the notes below its table: ``§``, ``†``; ``‡`` stands by itself at intervals of few."""

    value: Any
    marks: str


@dataclass(frozen=True)
class Spread:
    """A mean with its standard deviation, NaN where that is not known."""

    mean: float
    std: float


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading, with the unit where there is one.
        show: writes a number or an interval; words are written as they are.
        missing: what stands where there is no value.
    """

    label: str
    show: Format = str
    missing: str = ""

    def text(self, value: Any) -> str:
        """A cell as it is written."""
        if isinstance(value, Marked):
            return f"{self.text(value.value)} {value.marks}"
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return self.missing
        if isinstance(value, Interval) and value.few and tells(value.low, value.high):
            return f"{self.show(value)} ‡"
        return value if isinstance(value, str) else self.show(value)


@dataclass(frozen=True)
class Table:
    """A table of values.

    Attributes:
        frame: the values, by the labels of their columns.
        columns: those that are written, and how.
        records: for each row the run ids of the records that it is from; empty where no row names any.
        doubted: run ids of records that are INVALID for a reason not asked for; rows that are from them say so.
    """

    frame: pandas.DataFrame = field(default_factory=pandas.DataFrame)
    columns: tuple[Column, ...] = ()
    records: tuple[tuple[str, ...], ...] = ()
    doubted: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Rows."""
        return len(self.frame)

    @property
    def header(self) -> list[str]:
        """The labels of the columns."""
        return [column.label for column in self.columns]

    def texts(self) -> list[list[str]]:
        """Every row as it is written."""
        found = [[c.text(value) for c, value in zip(self.columns, row, strict=True)] for row in self._rows()]
        for line, names in zip(found, self.records, strict=False):
            if self.doubted.intersection(names):
                line[0] += " (INVALID)"
        return found

    def with_doubts(self, doubted: Iterable[str]) -> Table:
        """The same with the records that are not to be relied upon."""
        return replace(self, doubted=frozenset(doubted))

    def sort_keys(self) -> list[list[float | None]]:
        """For every cell the number that it holds, None where it holds none."""
        return [[number_in(value) for value in row] for row in self._rows()]

    def numeric(self) -> list[bool]:
        """For each column whether it holds numbers; what stands in place of one, such as ``oom``, does not matter."""
        keys = self.sort_keys()
        return [any(row[place] is not None for row in keys) for place in range(len(self.columns))]

    def only(self, label: str, values: Sequence[object]) -> Table:
        """The rows whose cell in a column is one of these values."""
        kept = self.frame[label].isin(values)
        records = tuple(each for each, keep in zip(self.records, kept, strict=False) if keep)
        return Table(self.frame[kept].reset_index(drop=True), self.columns, records, self.doubted)

    def _rows(self) -> list[list[Any]]:
        return self.frame[self.header].to_numpy(dtype=object).tolist()  # type: ignore[no-any-return]


def make_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], records: Sequence[Sequence[str]]) -> Table:
    """A table from rows by label; a label that a row lacks has no value there.

    Raises:
        ValueError: a row has a label that is no column, or the rows and their records are not as many.
    """
    labels = [column.label for column in columns]
    for row in rows:
        if strange := set(row) - set(labels):
            raise ValueError(f"'{min(strange)}' is no column of the table")
    if records and len(records) != len(rows):
        raise ValueError(f"{len(rows)} rows, but records for {len(records)}")
    body = [[row.get(label) for label in labels] for row in rows]
    frame = pandas.DataFrame(body, columns=labels, dtype=object)
    return Table(frame, tuple(columns), tuple(tuple(each) for each in records))


def number_in(value: Any) -> float | None:
    """The number that a cell's value is, of an interval the estimate; None for words and missing values."""
    if isinstance(value, Marked):
        return number_in(value.value)
    if isinstance(value, Interval):
        return value.value
    if isinstance(value, Spread):
        return value.mean
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def fixed(digits: int, unit: str = "") -> Format:
    """A number with so many digits after the point."""
    return lambda value: f"{value:.{digits}f}{unit}"


def spread(digits: int) -> Format:
    """A mean and its standard deviation, ``0.209 ± 0.047``; the mean alone where that is not known."""

    def show(value: Spread) -> str:
        known = f" ± {value.std:.{digits}f}" if math.isfinite(value.std) else ""
        return f"{value.mean:.{digits}f}{known}"

    return show


def thousands(value: float) -> str:
    """A whole number with commas."""
    return f"{value:,.0f}"


def signed(value: float) -> str:
    """A whole number with its sign."""
    return f"{value:+.0f}"


def significant(value: float) -> str:
    """Three digits that mean something, never as a power of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def estimate(unit: str = "") -> Format:
    """An interval as ``0.81 [0.63, 1.04]``, with more digits where the ends would look alike; or a plain number."""

    def show(value: Interval | float) -> str:
        if not isinstance(value, Interval):
            return f"{value:.2f}{unit}"
        if not tells(value.low, value.high):
            return f"{value.value:.2f}{unit} (no interval)"
        digits, low, high = _ends(value.low, value.high)
        return f"{value.value:.{digits}f}{unit} [{low}, {high}]"

    return show


times = estimate("x")


def _ends(low: float, high: float) -> tuple[int, str, str]:
    """With as many digits as tell the ends apart; with two where they are equal."""
    told = [digits for digits in range(2, 7) if f"{low:.{digits}f}" != f"{high:.{digits}f}"]
    digits = told[0] if told else 2
    return digits, f"{low:.{digits}f}", f"{high:.{digits}f}"


def tells(low: float, high: float) -> bool:
    """Whether an interval is worth showing: of two batches it may span thousands, which says only that they are few."""
    return high <= WIDEST * low  # false too for NaN, where there is no interval


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first is text, the others numbers."""
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, body)])


def as_markdown(table: Table) -> str:
    """A table in Markdown."""
    return markdown(table.header, table.texts())
