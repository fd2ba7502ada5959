"""Which records belong together: the same work on the same machine, and which of its runs is shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas

from .. import stats
from ..prefilling.methods import BASELINE
from .row import COLUMNS, HOW, MACHINE, WORK, Row, batches_are_draws, key, parts, set_speedup
from .store import Record

METHOD_ORDER = (
    "prepacking", "padding-free", "dataset-prepacking", "full-batching", "length-ordered", "continuous-batching",
    "vllm",
)  # fmt: skip


def place_of(method: str) -> int:
    """Where a method stands among others: those that were added last."""
    known = method.partition("+")[0]  # with an attention kernel of its own beside the method itself
    return METHOD_ORDER.index(known) if known in METHOD_ORDER else len(METHOD_ORDER)


@dataclass
class Comparison:
    """Measurements of the same work on the same machine.

    Attributes:
        shown: one record per method, in the order of ``METHOD_ORDER``: those of one run, then methods that only other
            runs have.
        others: records of the same methods in other runs.
    """

    shown: list[Record]
    others: list[Record]

    @property
    def rows(self) -> list[Row]:
        """The rows that are shown."""
        return [record.row for record in self.shown]


InTurns = list[Record]  # what was measured in turns, in one process


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """Records grouped by what was compared; of the same work measured several times one run is shown.

    The methods of a run took turns, so ratios within it are paired. A method that was measured in a run of its own is
    shown beside the others: its speedup is over full-batching of another run, with an interval between runs, and its
    row says so.
    """
    runs: dict[tuple[Path | None, str], InTurns] = defaultdict(list)
    for record in records:
        runs[record.folder and record.folder.parent, record.row.comparison_id].append(record)
    groups: dict[tuple[object, ...], list[InTurns]] = defaultdict(list)
    for run in runs.values():
        groups[_kind(run)].append(run)
    found = [_comparison(same) for same in groups.values()]
    order = ("dataset", "model", *parts(WORK), *parts(MACHINE))
    return sorted(found, key=lambda each: [str(getattr(each.rows[0], name)) for name in order])


def _kind(run: InTurns) -> tuple[object, ...]:
    """Equal for runs that did the same work in the same way on the same machine, whatever their methods and packing."""
    # A serving engine has a forward of its own, and is shown beside the other methods whatever theirs is. A method with
    # an attention kernel of its own does not say what the others were asked for.
    rows = [record.row for record in run]
    row = min(rows, key=lambda row: (row.forward is None, "+" in row.method))
    asked = None if "+" in row.method else row.attention_asked
    but = ("method", "packing", "forward", "attention_asked")
    return (*key(row, WORK, MACHINE), row.forward or "fused", asked, *key(row, HOW, but=but))


def _comparison(runs: list[InTurns]) -> Comparison:
    """One record a method: those of the run with most methods that may be relied upon, then those only others have.

    Ties go to the run with most methods measured, then to the newest.
    """

    def rank(run: InTurns) -> tuple[int, int, str]:
        return _usable([record.row for record in run])

    first = max(runs, key=rank)
    shown: list[Record] = []
    others: list[Record] = []
    for run in [first, *sorted((run for run in runs if run is not first), key=rank, reverse=True)]:
        for record in run:
            (others if any(_same_method(record.row, each.row) for each in shown) else shown).append(record)
    records = sorted(shown, key=lambda record: (place_of(record.row.method), record.row.packing or ""))
    base = next((each for each in records if each.row.method == BASELINE and each.row.status == "ok"), None)
    return Comparison([_with_speedup(record, base) if base else record for record in records], others)


def _same_method(a: Row, b: Row) -> bool:
    """Whether two rows of the same work are of one method; one that failed does not know which kernel it would run."""
    kernels = {a.attention_kernel, b.attention_kernel} - {None}
    return (a.method, a.packing) == (b.method, b.packing) and len(kernels) < 2


def _with_speedup(record: Record, base: Record) -> Record:
    """A record whose run had no full-batching, with the speedup over that of another run; others as they are."""
    row = record.row
    if row.status != "ok" or row.method == BASELINE or row.speedup_over_full_batching is not None or row.arrivals:
        return record
    theirs, ours = base.whole_seconds(), record.whole_seconds()
    same_batches = batches_are_draws(row)
    if theirs is None or ours is None or (same_batches and theirs.shape[1] != ours.shape[1]):
        return record
    found = stats.between_runs(theirs, ours, same_batches)
    filled = replace(row, speedup_across_runs=True, intervals_rest_on_few=row.intervals_rest_on_few or found.few)
    set_speedup(filled, found)
    return replace(record, row=filled)


def _usable(run: Sequence[Row]) -> tuple[int, int, str]:
    """How much of a run may be relied upon, how much was measured, and when: of several the greatest is shown."""
    done = [row for row in run if row.status == "ok"]
    return sum(not row.doubted for row in done), len(done), max(row.created_at for row in run)


Methods = dict[str, Row]  # the rows of one run, by method


def in_turns(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], Methods]:
    """For each combination of values in these columns one run, whose methods took turns, as rows by method.

    Of several runs the one with most methods that may be relied upon is taken (ties: the newest), so that no line of a
    table mixes runs.
    Serving engines have a forward of their own, so the other methods say what a run was of.
    """
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row.comparison_id].append(row)
    ranked = sorted(runs.values(), key=lambda run: (_usable(run)[0], len(run), _usable(run)[2]))
    found: dict[tuple[Any, ...], Methods] = {}
    for run in ranked:  # the last one stands
        told = next((row for row in run if row.forward), run[0])
        found[tuple(getattr(told, column) for column in columns)] = {row.method: row for row in run}
    return found


def machines(rows: Sequence[Row]) -> dict[str, str]:
    """By run id the name of the machine: the device, and its software where one device was used with several."""
    told = [name for name in parts(MACHINE) if name not in ("device_name", "split")]
    by_device: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for row in rows:
        by_device[row.device_name].add(tuple(getattr(row, name) for name in told))
    found = {}
    for row in rows:
        each = by_device[row.device_name]
        differ = [name for place, name in enumerate(told) if len({kind[place] for kind in each}) > 1]
        said = [f"{name.replace('_version', '').replace('_', ' ')} {getattr(row, name)}" for name in differ]
        found[row.run_id] = ", ".join([row.device_name, *said])
    return found


def summary(found: list[Comparison]) -> pandas.DataFrame:
    """One line per record, in the columns of ``Row``: those that are shown and those that are not."""
    rows = [asdict(record.row) for each in found for record in (*each.shown, *each.others)]
    return pandas.DataFrame(rows, columns=list(COLUMNS))
