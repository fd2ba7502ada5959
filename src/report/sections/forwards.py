"""Forwards: what torch's compiler and CUDA graphs are worth for small batches."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.groups import place_of
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, times
from ..comparison import per_batch
from ..section import Claim
from ..select import clean
from ..words import label, model_name
from ..words import notes as notes_of

PLACE = 16
TITLE = "Forwards of small batches"
LEAD = (
    "The fused forward, the same with its elementwise parts through torch's compiler, and the same as CUDA graphs. A "
    "small batch spends much of its time on a GPU in launches of kernels, which both spare. Each forward was measured "
    "by itself, so that a ratio of two has no interval."
)
FUSED = "fused"
COLUMNS = (
    Column("Method"), Column("Model"), Column("Batch"), Column("Forward"), Column("s / batch", fixed(4)),
    Column("As fast as fused", times), Column("Compiling, capturing (s)", fixed(1)),
)  # fmt: skip
Found = list[Row]


def select(records: Sequence[Record]) -> Found:
    """Every method by every forward, failures too."""
    rows = clean(records, protocol="modern")
    return sorted(rows, key=lambda row: (row.model, row.batch_size, place_of(row.method), row.forward != FUSED))


def table(found: Found) -> Table:
    """A row for each method, batch size and forward."""
    fused = {(row.model, row.batch_size, row.method): row for row in found if row.forward == FUSED}
    body = []
    for row in found:
        base = fused.get((row.model, row.batch_size, row.method))
        seconds, base_seconds = row.seconds_per_batch_mean, base.seconds_per_batch_mean if base else None
        body.append(
            {"Method": label(row), "Model": model_name(row), "Batch": row.batch_size, "Forward": row.forward,
             "s / batch": per_batch(row),
             "As fast as fused": base_seconds / seconds if seconds and base_seconds else None,
             "Compiling, capturing (s)": row.compile_s}
        )  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in found])


def notes(found: Found) -> list[str]:
    """What failed, and what may not be relied upon."""
    return list(dict.fromkeys(notes_of(found)))


def claims(found: Found) -> list[Claim]:
    """The paper claims nothing of this."""
    return []


def figure(found: Found) -> None:
    """There is nothing to draw."""
