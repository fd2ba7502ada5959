"""What prepacking is worth today: all methods, serving engines among them, doing identical work."""

from __future__ import annotations

from collections.abc import Sequence

from ...records.groups import Methods
from ...records.store import Record
from ..comparison import RATIOS_IN_WORDS
from ..methods_as_ratios import Found, claims, figure, select_comparisons, table
from ..methods_as_ratios import notes as notes_of
from ..select import BASE, clean
from ..words import model_name

__all__ = ["LEAD", "PLACE", "TITLE", "claims", "figure", "notes", "select", "table"]

PLACE = 10
TITLE = "What prepacking is worth today"
LEAD = f"All methods do identical work (protocol modern, TTFT) over the same prompts, in turns. {RATIOS_IN_WORDS}"


def select(records: Sequence[Record]) -> Found:
    """The comparisons that the ideal was timed in."""
    found = select_comparisons(clean(records, protocol="modern", metric="ttft"))
    return [each for each in found if any(row.fraction_of_ideal is not None for row in each.values())]


def notes(found: Found) -> list[str]:
    """How much of padding-free's gain is its layout and how much its kernel, and what else must stand below the table.

    Padded rows under a dense mask are what most programs compute. Without the mask, by the kernel of all methods here,
    they are full-batching; without the padding too, they are padding-free.
    """
    return [*(said for methods in found if (said := _parts(methods))), *notes_of(found)]


def _parts(methods: Methods) -> str | None:
    masked, base, free = (methods.get(name) for name in (f"{BASE}+dense", BASE, "padding-free"))
    if masked is None or base is None or free is None:
        return None
    longer, least, best = (row.seconds_per_batch_mean for row in (masked, base, free))
    if longer is None or least is None or best is None:
        return None
    return (
        f"{model_name(base)}, batches of {base.batch_size}: of padding-free's {longer / best:.2f}x over padded rows "
        f"under a dense mask, {longer / least:.2f}x is the kernel (no mask), {least / best:.2f}x the layout (no pads)"
    )
