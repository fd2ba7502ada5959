"""What the report is made of: for each experiment a section with its claims, its table and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

VERDICTS = ("agrees", "differs", "not run")


@dataclass(frozen=True)
class Claim:
    """One statement of the paper (or of this project) beside what was measured here.

    Attributes:
        text: the statement, one sentence.
        paper, ours: its figure as published and as measured, with unit; empty where there is none.
        verdict: one of ``VERDICTS``.
        why: the reason where it differs or was not run; empty where it agrees.
    """

    text: str
    paper: str
    ours: str
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text: numbers are formatted already, units stand in the header.

    Attributes:
        header: one label per column; the first columns name what was measured, the others hold figures.
        body: rows of as many cells.
        records: for each row the run ids of the records that it is from.
    """

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    records: Sequence[Sequence[str]] = ()


@dataclass
class Section:
    """One experiment in the report.

    Attributes:
        name: of the experiment and of its files: ``<name>.csv``, ``<name>.png`` …
        title: a short heading, with the paper's figure or table where it has one.
        lead: one or two sentences: what is shown and how to read it.
        figure: a matplotlib figure, or None where there is nothing to draw.
        notes: lines below the table: what failed, what is invalid, what was measured how.
    """

    name: str
    title: str
    lead: str
    claims: list[Claim] = field(default_factory=list)
    table: Table = field(default_factory=lambda: Table((), ()))
    figure: Any = None
    notes: list[str] = field(default_factory=list)
