"""What the report is made of: for each experiment a section with its claims, its table and its figure.

The section of an experiment is the file of its name in ``sections/``. It holds

- ``TITLE`` and ``LEAD``, and ``PLACE``, its place in the report;
- ``select(records)``, what the section is about, from the records of the experiment;
- ``table(found)``, ``claims(found)`` and ``figure(found)``, each from what ``select`` returned;
- where they are needed ``notes(found)``, lines below the table; ``TAKES``, the names of the experiments whose records
  it takes, where those are not its own alone (None: of no experiment); ``SEEDS``, true where it puts the records of
  several seeds together, and says itself which runs are INVALID: else it is given those of one seed.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..records.groups import comparisons
from ..records.store import Record
from . import sections
from .cells import Table
from .words import FEW, validity

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


def _of_one_seed(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records of the seed that most are of (ties: the lowest), and a line that says which were left out.

    Another seed has other prompts and weights: a search for the largest batch, a ratio of two runs or a claim would
    mix what does not belong together.
    """
    count = Counter(record.row.seed for record in records)
    if len(count) < 2:
        return list(records), []
    seed = min(count, key=lambda seed: (-count[seed], seed))
    others = ", ".join(str(each) for each in sorted(count) if each != seed)
    said = f"of seed {seed}; records of seed {others} are left out here, and have to lie in a folder of their own"
    return [record for record in records if record.row.seed == seed], [said]


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
    other_seeds: list[str] = []
    pools = getattr(module, "SEEDS", False)
    if None not in takes and not pools:
        own, other_seeds = _of_one_seed(own)
    found = module.select([record for group in comparisons(own) for record in group.shown])
    table, claims = module.table(found), module.claims(found)
    section = Section(name_of(module), module.TITLE, module.LEAD, claims)
    if len(table):
        by_run = {} if pools else {record.row.run_id: record.row for record in own}
        behind = [by_run[name] for name in dict.fromkeys(name for line in table.records for name in line)
                  if name in by_run]  # fmt: skip
        section.table = table.with_doubts({row.run_id for row in behind if row.doubted})
        section.figure = module.figure(found)
        told = module.notes(found) if hasattr(module, "notes") else []
        marked = any("‡" in cell for line in table.texts() for cell in line)
        section.notes = [*told, *[FEW] * (marked and FEW not in told), *validity(behind), *other_seeds]
    elif not claims:
        section.notes = ["not run: nothing was recorded for it"]
    return section
