"""What prepacking is worth today: all methods, serving engines among them, doing identical work."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.store import Record
from ..methods_as_ratios import Found, claims, figure, notes, select_comparisons, table
from ..select import clean

__all__ = ["LEAD", "PLACE", "TITLE", "claims", "figure", "notes", "select", "table"]

PLACE = 10
TITLE = "What prepacking is worth today"
LEAD = (
    "All methods do identical work (protocol modern, TTFT) over the same prompts, in turns. Of ideal: a dense forward "
    "of the model's own code over as many useful tokens in prompts of equal length. Of limit: the least operations or "
    "bytes at this machine's measured rates. An offline method (*) needs all prompts in advance."
)


def select(records: Sequence[Record]) -> Found:
    """The comparisons that the ideal was timed in."""
    found = select_comparisons(clean(records, protocol="modern", metric="ttft"))
    return [each for each in found if any(row.fraction_of_ideal is not None for row in each.values())]
