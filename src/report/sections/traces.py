"""Prompts of real serving: the Azure traces."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.store import Record
from ..methods_as_ratios import Found, claims, figure, notes, select_comparisons, table
from ..select import clean

__all__ = ["LEAD", "PLACE", "TITLE", "claims", "figure", "notes", "select", "table"]

PLACE = 12
TITLE = "Prompts of real serving (Azure traces)"
LEAD = (
    "The same on prompt lengths of the Azure LLM inference traces (conversation, code), cut where the row says. Long "
    "prompts of like length leave less padding to save."
)


def select(records: Sequence[Record]) -> Found:
    """Every comparison of the experiment."""
    return select_comparisons(clean(records, protocol="modern", metric="ttft"))
