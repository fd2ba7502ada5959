"""Rows for a section: the clean ones of a kind, and what sets them apart from the paper's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from src import paper
from src.measure.records import Record
from src.measure.row import Row
from src.paper import CUT_AT, DATASETS
from src.report.section import Claim
from src.report.tables import MODELS, per_batch, tells, with_interval

BASE, PACKED, ORDERED, WHOLE = "full-batching", "prepacking", "length-ordered", "dataset-prepacking"
CLOSE = 0.25  # a figure agrees with the paper's within this share of it, or where its interval holds it


def clean(records: Iterable[Record], **where: object) -> list[Row]:
    """Rows measured without faults on demand whose columns have the values given (or one of those, for a tuple).

    A row that only a ratio across runs puts beside others is left out: what a section says is of one run. Of a dataset
    that is named, prompts that were cut otherwise than in the paper are other prompts, and left out too.
    """
    rows = [record.row for record in records if not (record.row.quirks or record.row.speedup_across_runs)]
    if "dataset" in where:
        rows = [row for row in rows if row.dataset not in DATASETS or row.dataset_max_tokens == CUT_AT.get(row.dataset)]
    for column, value in where.items():
        allowed = value if isinstance(value, tuple) else (value,)
        rows = [row for row in rows if getattr(row, column) in allowed]
    return rows


def one_kind(rows: Sequence[Row]) -> list[Row]:
    """The rows of the protocol and type (dtype) that cover most; of two that cover as much, the paper's protocol."""
    covered = Counter((row.protocol, row.dtype) for row in rows)
    if not covered:
        return []
    best = max(covered, key=lambda kind: (covered[kind], kind[0] == "paper"))
    return [row for row in rows if (row.protocol, row.dtype) == best]


def by_method(rows: Iterable[Row], *columns: str) -> dict[tuple[object, ...], dict[str, Row]]:
    """The rows of each combination of columns by method; of two of one kind the newer one."""
    found: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row.created_at):
        found.setdefault(tuple(getattr(row, column) for column in columns), {})[row.method] = row
    return found


def pairs(rows: Iterable[Row], *columns: str) -> dict[tuple[object, ...], dict[str, Row]]:
    """The same, of one run each: of that which has most methods, of two the newer one. Methods took turns in it.

    What a run is of is told by its methods that have a forward: serving engines have one of their own.
    """
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.comparison_id, []).append(row)
    best: dict[tuple[object, ...], tuple[int, str]] = {}
    found: dict[tuple[object, ...], dict[str, Row]] = {}
    for run in runs.values():
        told = next((row for row in run if row.forward), run[0])
        key = tuple(getattr(told, column) for column in columns)
        rank = (len(run), max(row.created_at for row in run))
        if key not in best or rank > best[key]:
            best[key], found[key] = rank, {row.method: row for row in run}
    return found


def order(dataset: str) -> tuple[int, str]:
    """Datasets in the paper's order, others after them."""
    return (DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS), dataset)


def judged(
    text: str, row: Row | None, ours: float | None, published: float | None, unit: str = "x",
    interval: tuple[float | None, float | None] | None = None, batch_size: int | None = None,
) -> Claim:  # fmt: skip
    """A claim with a figure, ours beside the paper's: it agrees within ``CLOSE``, or where the interval holds it.

    Args:
        interval: None for a figure that has none by its nature, such as a number of prompts.
    """
    theirs = "" if published is None else f"{published:.2f}{unit}"
    if row is None or ours is None or published is None:
        return not_run(text, theirs)
    low, high = interval or (None, None)
    shown = with_interval(ours, low, high, unit) if interval else f"{ours:.2f}{unit}"
    inside = low is not None and high is not None and tells(low, high) and low <= published <= high
    holds = inside or abs(ours / published - 1) <= CLOSE
    return decided(text, theirs, shown, holds, differences(row, batch_size))


def decided(text: str, published: str, ours: str, holds: bool, why: str) -> Claim:
    """A claim that was put to the test; ``why`` is said where it does not hold."""
    return Claim(text, published, ours, "agrees" if holds else "differs", "" if holds else why)


def not_run(text: str, published: str = "", why: str = "nothing was recorded for it") -> Claim:
    """A claim that nothing was measured for."""
    return Claim(text, published, "", "not run", why)


def published_as(model: object) -> str:
    """The paper's model to set beside one of ours: the same where it has it, else Llama2-1.3B."""
    return str(model) if model in MODELS else "llama2-1.3b"


def differences(row: Row, batch_size: int | None = None) -> str:
    """What sets a row's measurement apart from the paper's, in words."""
    found = []
    if "A6000" not in row.device_name:
        found.append(f"{row.device_name} instead of {paper.GPU}")
    if row.model not in MODELS:
        found.append(f"{row.model} instead of Llama2-1.3B")
    if batch_size is not None and row.batch_size != batch_size:
        found.append(f"batches of {row.batch_size} instead of {batch_size}")
    if row.protocol != "paper":
        found.append("identical work for all methods, logits at last positions only")
    if row.num_prompts < 1000:
        found.append(f"{row.num_prompts:,} prompts instead of 1,000")
    return "; ".join(found) or "faults of the original measurement (results/paper/README.md)"


def seconds(row: Row | None) -> str:
    """Mean seconds per batch, or what became of it."""
    return "" if row is None else per_batch(row)


def ratio_to(ours: float | None, theirs: float | None) -> str:
    """Ours over theirs."""
    return "" if not ours or not theirs else f"{ours / theirs:.2f}"
