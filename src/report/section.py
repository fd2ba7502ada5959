"""What the report is made of: for each experiment a section with its claims, its table and its figure.

The section of an experiment is the file of its name in ``sections/``. It holds

- ``TITLE`` and ``LEAD``, and ``PLACE``, its place in the report;
- ``select(records)``, what the section is about, from the records of the experiment;
- ``table(found)``, ``claims(found)`` and ``figure(found)``, each from what ``select`` returned;
- where they are needed ``notes(found)``, lines below the table, and ``TAKES``, the names of the experiments whose
  records it takes, where those are not its own alone (None: of no experiment).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..records.groups import comparisons
from ..records.store import Record
from . import sections
from .cells import Table

HOLDS, FAILS, CANNOT_TELL, NOT_RUN = "holds", "does not hold", "cannot tell", "not run"
VERDICTS = (HOLDS, FAILS, CANNOT_TELL, NOT_RUN)


@dataclass(frozen=True)
class Claim:
    """One statement about the world beside what was measured here.

    Attributes:
        text: the statement, one sentence.
        rule: by which it is judged, in words: ``every interval lies above 1``.
        paper, ours: its figure as published and as measured, with unit; empty where there is none.
        verdict: one of ``VERDICTS``.
        why: what decided, where it does not hold, cannot be told or was not run.
        beside: ``equal`` or ``different``, where the figures may be compared; else empty.
        unlike: in what the measurement is not the paper's.
    """

    text: str
    rule: str
    paper: str
    ours: str
    verdict: str
    why: str = ""
    beside: str = ""
    unlike: tuple[str, ...] = ()

    def judged(self) -> str:
        """The rule, and what decided."""
        return f"Holds if {self.rule}." + (f" Here: {self.why}." if self.why else "")


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
    table: Table = field(default_factory=Table)
    figure: Any = None
    notes: list[str] = field(default_factory=list)


@functools.cache
def modules() -> tuple[ModuleType, ...]:
    """The files of ``sections/``, in the order of the report."""
    names = [each.name for each in pkgutil.iter_modules(sections.__path__)]
    found = [importlib.import_module(f"{sections.__name__}.{name}") for name in names]
    return tuple(sorted(found, key=lambda module: (module.PLACE, module.__name__)))


def name_of(module: ModuleType) -> str:
    """The experiment that a file of ``sections/`` is about."""
    return module.__name__.rpartition(".")[2]


def make(module: ModuleType, records: Sequence[Record]) -> Section:
    """The section of an experiment.

    Args:
        records: of one machine, whatever they were measured for; the section takes those of its experiment. Of the
            same work measured several times one run is shown, whose methods took turns.
    """
    takes = getattr(module, "TAKES", (name_of(module),))
    own = [record for record in records if record.row.experiment in takes]
    found = module.select([record for group in comparisons(own) for record in group.shown])
    table, claims = module.table(found), module.claims(found)
    section = Section(name_of(module), module.TITLE, module.LEAD, claims)
    if len(table):
        section.table, section.figure = table, module.figure(found)
        section.notes = module.notes(found) if hasattr(module, "notes") else []
    elif not claims:
        section.notes = ["not run: nothing was recorded for it"]
    return section
