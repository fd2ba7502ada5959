"""All records below a folder into one table, comparisons kept apart, speedups filled in where they can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray

from src import stats
from src.measure.records import Record, read_all
from src.measure.row import COLUMNS, MACHINE, WORK, Row, parts
from src.measure.summary import BASELINE, set_speedup
from src.prefill.methods import method_of

METHOD_ORDER = (
    "prepacking", "padding-free", "dataset-prepacking", "full-batching", "length-ordered", "continuous-batching",
    "vllm",
)  # fmt: skip


def place_of(method: str) -> int:
    """Where a method stands among others: those that were added last."""
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)


@dataclass
class Comparison:
    """Measurements of the same work on the same machine.

    Attributes:
        shown: one record a method, in the authors' order; those of one run, and beside them what only others have.
        others: what was measured of the same methods in other runs.
    """

    shown: list[Record]
    others: list[Record]

    @property
    def rows(self) -> list[Row]:
        """The rows that are shown."""
        return [record.row for record in self.shown]


Run = list[Record]  # what was measured in turns, in one process


def comparisons(results_dir: Path) -> list[Comparison]:
    """The records below a folder, grouped by what was compared.

    Ratios are of one run, whose methods took turns. A method that was measured in a run of its own stands beside the
    others with a speedup over full-batching of another run, which its row says and whose interval is between runs.
    """
    runs: dict[tuple[Path, str], Run] = defaultdict(list)
    for path, record in read_all(results_dir):
        runs[path.parent, record.row.comparison_id].append(record)
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs.values():
        groups[_kind(run)].append(run)
    found = [_comparison(same) for same in groups.values()]
    order = ("dataset", "model", *parts(WORK), *parts(MACHINE))
    return sorted(found, key=lambda each: [str(getattr(each.rows[0], name)) for name in order])


def _kind(run: Run) -> tuple[object, ...]:
    """Equal for runs that did the same work in the same way on the same machine, less the methods and how they pack."""
    # A serving engine has a forward of its own, and stands beside the methods whatever theirs is.
    row = next((record.row for record in run if record.row.forward), run[0].row)
    how = row.forward or "fused", row.max_tokens_per_forward
    return (*(getattr(row, name) for name in (*parts(WORK), *parts(MACHINE))), *how)


def _comparison(runs: list[Run]) -> Comparison:
    """One record a method: of the run that has most of them, of two the newer one, and then of the newest others."""

    def rank(run: Run) -> tuple[int, str]:
        return sum(record.row.status == "ok" for record in run), max(record.row.created_at for record in run)

    first = max(runs, key=rank)
    shown: dict[tuple[object, ...], Record] = {}
    others: list[Record] = []
    for run in [first, *sorted((run for run in runs if run is not first), key=rank, reverse=True)]:
        for record in run:
            key = record.row.method, record.row.packing, record.row.attention_kernel
            if key in shown:
                others.append(record)
            shown.setdefault(key, record)
    records = sorted(shown.values(), key=lambda record: (place_of(record.row.method), record.row.packing or ""))
    _fill_speedups(records)
    return Comparison(records, others)


def _fill_speedups(records: list[Record]) -> None:
    """Speedups of methods whose run had no full-batching, over that of another run."""
    base = next((each for each in records if each.row.method == BASELINE and each.row.status == "ok"), None)
    for record in records if base else ():
        row = record.row
        if row.status == "ok" and row.method != BASELINE and row.speedup_over_full_batching is None:
            assert base is not None
            assert base.folder is not None
            assert record.folder is not None
            same_batches = not method_of(row.method).needs_dataset
            seconds = read_seconds(base.folder), read_seconds(record.folder)
            set_speedup(row, stats.between_runs(*seconds, same_batches))
            row.speedup_across_runs = True


def read_seconds(folder: Path) -> NDArray[np.float64]:
    """Seconds of each sample of a record, [repeats, batches]."""
    samples = pandas.read_csv(folder / "samples.csv")
    return samples.pivot(index="repeat", columns="batch", values="seconds").to_numpy(dtype=np.float64)


def machines(rows: Sequence[Row]) -> dict[str, str]:
    """By run id what it was measured on: the device, and the software where one device had more than one."""
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
