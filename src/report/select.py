"""Rows for a section: the clean ones, those of one kind, and which of them were measured in turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..interval import Interval
from ..paper import CUT_AT, DATASETS
from ..prefilling.methods import BASELINE
from ..records.row import Row
from ..records.store import Record
from .words import MODELS

BASE, PACKED, ORDERED, WHOLE = BASELINE, "prepacking", "length-ordered", "dataset-prepacking"


def clean(records: Iterable[Record], **where: object) -> list[Row]:
    """Rows measured without faults on demand whose columns have the values given (or one of those, for a tuple).

    A row that only a ratio across runs puts beside others is left out: what a section says is of one run. Of a dataset
    that is named, prompts that were cut otherwise than in the paper are other prompts, and left out too.
    """
    rows = [record.row for record in records if not (record.row.faults or record.row.speedup_across_runs)]
    if "dataset" in where:
        rows = [row for row in rows if row.dataset not in DATASETS or row.dataset_max_tokens == CUT_AT.get(row.dataset)]
    for column, value in where.items():
        allowed = value if isinstance(value, tuple) else (value,)
        rows = [row for row in rows if getattr(row, column) in allowed]
    return rows


def one_kind(rows: Sequence[Row]) -> list[Row]:
    """The rows of the protocol and type (dtype) that most rows have; in a tie the paper's protocol."""
    covered = Counter((row.protocol, row.dtype) for row in rows)
    if not covered:
        return []
    best = max(covered, key=lambda kind: (covered[kind], kind[0] == "paper"))
    return [row for row in rows if (row.protocol, row.dtype) == best]


def order(dataset: str) -> tuple[int, str]:
    """Datasets in the paper's order, others after them."""
    return (DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS), dataset)


def published_as(model: object, loadbit: object, theirs: str = "4") -> str:
    """The paper's model to set beside one of ours, as its CSVs name it; empty where none of its figures belongs there.

    A small model of ours stands beside Llama2-1.3B. The paper's own models stand beside themselves, and only where the
    bits of their weights are the paper's.

    Args:
        theirs: bits of the paper's figure.
    """
    if model not in MODELS:
        return "llama2-1.3b"
    return str(model) if loadbit == theirs else ""


def over(ours: float | None, theirs: float | None) -> float | None:
    """Ours over theirs, where both are known."""
    return ours / theirs if ours and theirs else None


def speedup_of(methods: Mapping[str, Row]) -> Interval | None:
    """Prepacking's speedup over full-batching in one run, INVALID where either method was; None: it has none."""
    found = methods[PACKED].interval("speedup_over_full_batching")
    base = methods.get(BASE)
    return replace(found, invalid=found.invalid or base.doubted) if found and base else found


def memory_of(row: Row) -> str:
    """What ``memory_ratio`` is of, in words; empty where it is the peak memory as it stands in tables."""
    return ", above the process without weights" if row.resident_rest_mb else ""


def memory_ratio(base: Row, packed: Row) -> float | None:
    """A method's peak memory over prepacking's.

    On a GPU it is that of tensors, as in the authors' table, and on a CPU what lies above the process without weights,
    which ``memory_of`` says.
    """
    if base.peak_memory_mb is None or packed.peak_memory_mb is None:
        return None
    rest = packed.resident_rest_mb or 0.0
    return over(base.peak_memory_mb - rest, packed.peak_memory_mb - rest)
