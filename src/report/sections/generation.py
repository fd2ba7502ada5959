"""Continuations from each method's cache, against ordinary generation."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.groups import place_of
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table
from ..claims import decided, not_run, unlike
from ..section import FAILS, HOLDS, Claim
from ..select import PACKED, clean
from ..words import label, model_name
from ..words import notes as notes_of

PLACE = 9
TITLE = "Generation from the packed cache"
LEAD = (
    "Greedy continuations from each method's cache, token for token against ordinary generation from each prompt "
    "alone. A difference counts unless the model is undecided between the two tokens."
)
COLUMNS = (
    Column("Method"), Column("Protocol"), Column("Model"), Column("Prompts"), Column("Tokens compared"),
    Column("Equal (%)", fixed(0), "n/a"), Column("Near-ties"),
    Column("Largest KV difference", lambda value: f"{value:.1e}"),
)  # fmt: skip
NEAR_TIES = "verified_near_ties"
Found = list[Row]


def select(records: Sequence[Record]) -> Found:
    """The rows whose prompts were continued."""
    rows = [row for row in clean(records) if row.generated_tokens]
    return sorted(rows, key=lambda row: (row.protocol, place_of(row.method)))


def table(found: Found) -> Table:
    """A row for each method and protocol."""
    body = [
        {"Method": label(row), "Protocol": row.protocol, "Model": model_name(row), "Prompts": row.verified_prompts,
         "Tokens compared": row.generated_tokens, "Equal (%)": row.generated_equal_pct,
         "Near-ties": row.verified_near_ties, "Largest KV difference": row.verified_max_rel_diff or 0.0}
        for row in found
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in found])


def notes(found: Found) -> list[str]:
    """What failed."""
    return notes_of([row for row in found if row.status != "ok"])


def claims(found: Found) -> list[Claim]:
    """Whether prepacking's continuations are the ordinary ones."""
    text = "Generation goes on from the packed cache as from an ordinary one"
    rule = "every continuation is ordinary generation's, token for token, but for near-ties; it does not if any is not"
    packed = [row for row in found if row.method == PACKED]
    if not packed:
        return [not_run(text, rule, "equal")]
    holds = all(row.status == "ok" for row in packed)  # a row is "incorrect" where more than a near-tie differs
    compared, ties = (sum(getattr(row, name) or 0 for row in packed) for name in ("generated_tokens", NEAR_TIES))
    equal = "all equal" if all(row.generated_equal_pct == 100 for row in packed) else f"equal but for {ties} near-ties"
    ours = f"{compared:,} tokens compared, {equal if holds else 'not all equal'}"
    verdict = (HOLDS, "") if holds else (FAILS, "see the table")
    return [decided(text, rule, verdict, ours, "equal", unlike(packed[0], None, None))]


def figure(found: Found) -> None:
    """There is nothing to draw."""
