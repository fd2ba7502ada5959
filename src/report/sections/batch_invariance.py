"""Batch invariance: whether a prompt comes out the same whatever it is batched with."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.groups import place_of
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table
from ..section import Claim
from ..select import clean
from ..words import label, model_name
from ..words import notes as notes_of

PLACE = 15
TITLE = "Batch invariance"
LEAD = (
    "Each prompt alone, in a batch, and in another batch of half as many prompts, by the same method and kernel: first "
    "tokens that are equal, and keys and values that are equal in every bit. Rounding depends on shapes of products "
    "and attention calls; 100 % means that results can be compared across batches without a tolerance."
)
COLUMNS = (
    Column("Method"), Column("Kernel"), Column("Type"), Column("Model"), Column("Prompts"),
    Column("First tokens as alone (%)", fixed(0)), Column("KV as alone (%)", fixed(1)),
    Column("First tokens as in another batch (%)", fixed(0)), Column("KV as in another batch (%)", fixed(1)),
)  # fmt: skip
Found = list[Row]


def select(records: Sequence[Record]) -> Found:
    """The rows whose prompts were prefilled alone and in another batch, and those that failed."""
    rows = [row for row in clean(records) if row.invariant_tokens_alone_pct is not None or row.status != "ok"]
    return sorted(rows, key=lambda row: (row.dtype != "float32", place_of(row.method), row.method))


def table(found: Found) -> Table:
    """A row for each method, kernel and type."""
    rows = [row for row in found if row.status == "ok"]
    body = [
        {"Method": label(row).partition("+")[0], "Kernel": row.attention_asked or "auto", "Type": row.dtype,
         "Model": model_name(row), "Prompts": row.verified_prompts,
         "First tokens as alone (%)": row.invariant_tokens_alone_pct, "KV as alone (%)": row.invariant_kv_alone_pct,
         "First tokens as in another batch (%)": row.invariant_tokens_other_pct,
         "KV as in another batch (%)": row.invariant_kv_other_pct}
        for row in rows
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in rows])


def notes(found: Found) -> list[str]:
    """What could not be measured."""
    return list(dict.fromkeys(notes_of([row for row in found if row.status != "ok"])))


def claims(found: Found) -> list[Claim]:
    """The paper claims nothing of this."""
    return []


def figure(found: Found) -> None:
    """There is nothing to draw."""
