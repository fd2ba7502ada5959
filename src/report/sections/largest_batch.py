"""The largest batch that each method prefills before memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from ... import paper
from ...records.row import MACHINE, WORK, Row, key
from ...records.store import Record
from ..cells import Column, Table, make_table, thousands
from ..claims import INVALID, close, decided, not_run, unlike
from ..plots import STYLE, finish_axes, legend, titled
from ..section import CANNOT_TELL, FAILS, HOLDS, Claim
from ..select import BASE, PACKED, clean
from ..words import model_name

PLACE = 8
TITLE = "The largest batch before memory runs out"
LEAD = (
    "Found by search: batches double until one fails, then the gap is halved. On a GPU the card's memory is the limit, "
    "on a CPU one that was set."
)
METHODS = (PACKED, BASE)
MOST = 2**31  # prompts; more than any batch has
SIZE = ("batch_size", "num_prompts", "workload_fingerprint")  # in these the batches of one search differ
COLUMNS = (
    Column("Method"), Column("Dataset"), Column("Model"), Column("Memory (MB)", thousands), Column("Largest batch"),
    Column("Fails at"),
)  # fmt: skip


@dataclass(frozen=True)
class Search:
    """What a search found for one method: its rows, the largest batch that fits, and the least that failed."""

    rows: list[Row]

    @property
    def last(self) -> Row:
        """The row of the newest failure, or of the largest batch where none failed."""
        return max(self.rows, key=lambda row: (row.status == "oom", row.created_at))

    @property
    def fits(self) -> int:
        """Prompts of the largest batch that was prefilled; 0: none was."""
        return max((row.batch_size for row in self.rows if row.status == "ok"), default=0)

    @property
    def fails(self) -> int | None:
        """Prompts of the smallest batch that failed; None: the dataset had no more prompts before memory ran out."""
        return min((row.batch_size for row in self.rows if row.status == "oom"), default=None)


Found = list[dict[str, Search]]  # of each model and dataset both methods


def select(records: Sequence[Record]) -> Found:
    """The searches that ended for both methods: at least full-batching's with memory running out."""
    kinds: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in clean(records, method=METHODS):
        kind = (row.dataset, row.model, *key(row, WORK, MACHINE, but=SIZE))
        kinds.setdefault(kind, {}).setdefault(row.method, []).append(row)
    found = []
    for _, methods in sorted(kinds.items(), key=str):
        ended = any(row.status == "oom" for row in methods.get(BASE, []))
        if ended and methods.keys() == set(METHODS):
            found.append({name: Search(methods[name]) for name in METHODS})
    return found


def table(found: Found) -> Table:
    """A row for each search."""
    searches = [search for both in found for search in both.values()]
    body = [
        {"Method": each.last.method, "Dataset": each.last.dataset, "Model": model_name(each.last),
         "Memory (MB)": each.last.memory_limit_mb or "the card's", "Largest batch": each.fits,
         "Fails at": "no more prompts" if each.fails is None else each.fails}
        for each in searches
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id for row in each.rows] for each in searches])


def claims(found: Found) -> list[Claim]:
    """How many times as large prepacking's batches may be."""
    text = "Prepacking takes larger batches than full-batching before memory runs out"
    rule = (
        "on some dataset prepacking prefills a batch in which full-batching runs out of memory; it does not if "
        "full-batching prefills on each the batch in which prepacking runs out"
    )
    published = f"up to {paper.LARGER_BATCHES:.0f}x"
    if not found:
        return [not_run(text, rule, published)]
    best = max(found, key=lambda both: both[PACKED].fits / max(1, both[BASE].fits))
    packed, base = best[PACKED], best[BASE]
    if packed.fits >= (base.fails or 0):
        verdict = HOLDS, ""
    else:
        beaten = all((both[PACKED].fails or MOST) <= both[BASE].fits for both in found)
        verdict = (FAILS, "") if beaten else (CANNOT_TELL, "the sizes are too near")
    deciding = [row for each in (packed, base) for row in each.rows if row.batch_size == each.fits]
    if any(row.doubted for row in deciding):
        verdict = CANNOT_TELL, INVALID
    ratio = packed.fits / base.fits if base.fits else None
    at_least = "" if packed.fails else "at least "
    ours = f"{at_least}{ratio:.1f}x: {packed.fits} and {base.fits} prompts, {packed.last.dataset}" if ratio else ""
    apart = unlike(packed.last, None, None)
    return [decided(text, rule, verdict, ours, published, apart, close(ratio, paper.LARGER_BATCHES))]


def figure(found: Found) -> Any:
    """Bars of the largest batches, a pair for each dataset."""
    by_dataset = {both[PACKED].last.dataset: both for both in found}
    drawn, panel = plt.subplots(figsize=(6, 0.9 + 0.9 * len(by_dataset)), layout="constrained")
    for place, both in enumerate(by_dataset.values()):
        for offset, method in zip((-0.2, 0.2), METHODS, strict=True):
            fits = both[method].fits
            panel.barh(place + offset, fits, 0.36, edgecolor="black", linewidth=0.6, **STYLE[method])
            panel.annotate(f" {fits}", (fits, place + offset), va="center", fontsize=8)
    panel.set_yticks(range(len(by_dataset)), list(by_dataset))
    panel.invert_yaxis()
    panel.set_xlabel("largest batch prefilled (prompts)")
    panel.set_title(titled([each.last for both in found for each in both.values()]), fontsize=9)
    legend(drawn, METHODS)
    finish_axes(panel)
    return drawn
