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
from ..claims import judged
from ..plots import STYLE, finish_axes, legend, titled
from ..section import Claim
from ..select import BASE, PACKED, clean
from ..words import model_name

PLACE = 8
TITLE = "The largest batch before memory runs out"
LEAD = (
    "Found by search: batches double until one fails, then the gap is halved. On a GPU the card's memory is the limit, "
    "on a CPU one that was set."
)
METHODS = (PACKED, BASE)
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
    def failed(self) -> Row:
        """The row of the newest failure."""
        return max((row for row in self.rows if row.status == "oom"), key=lambda row: row.created_at)

    @property
    def fits(self) -> int:
        """Prompts of the largest batch that was prefilled; 0: none was."""
        return max((row.batch_size for row in self.rows if row.status == "ok"), default=0)

    @property
    def fails(self) -> int:
        """Prompts of the smallest batch that failed."""
        return min(row.batch_size for row in self.rows if row.status == "oom")


Found = list[dict[str, Search]]  # of each model and dataset both methods


def select(records: Sequence[Record]) -> Found:
    """The searches that ended for both methods."""
    kinds: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in clean(records, method=METHODS):
        kind = (row.dataset, row.model, *key(row, WORK, MACHINE, but=SIZE))
        kinds.setdefault(kind, {}).setdefault(row.method, []).append(row)
    found = []
    for _, methods in sorted(kinds.items(), key=str):
        ended = {name: rows for name, rows in methods.items() if any(row.status == "oom" for row in rows)}
        if ended.keys() == set(METHODS):
            found.append({name: Search(ended[name]) for name in METHODS})
    return found


def table(found: Found) -> Table:
    """A row for each search."""
    searches = [search for both in found for search in both.values()]
    body = [
        {"Method": each.failed.method, "Dataset": each.failed.dataset, "Model": model_name(each.failed),
         "Memory (MB)": each.failed.memory_limit_mb or "the card's", "Largest batch": each.fits,
         "Fails at": each.fails}
        for each in searches
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id for row in each.rows] for each in searches])


def claims(found: Found) -> list[Claim]:
    """How many times as large prepacking's batches may be."""
    text = "Prepacking takes batches up to 16 times as large before memory runs out"
    ratios = [(both[PACKED].fits / both[BASE].fits, both[PACKED].failed) for both in found if both[BASE].fits]
    ratio, row = max(ratios, key=lambda item: item[0], default=(None, None))
    return [judged(text, row, ratio, paper.LARGER_BATCHES)]


def figure(found: Found) -> Any:
    """Bars of the largest batches, a pair for each dataset."""
    by_dataset = {both[PACKED].failed.dataset: both for both in found}
    drawn, panel = plt.subplots(figsize=(6, 0.9 + 0.9 * len(by_dataset)), layout="constrained")
    for place, both in enumerate(by_dataset.values()):
        for offset, method in zip((-0.2, 0.2), METHODS, strict=True):
            fits = both[method].fits
            panel.barh(place + offset, fits, 0.36, edgecolor="black", linewidth=0.6, **STYLE[method])
            panel.annotate(f" {fits}", (fits, place + offset), va="center", fontsize=8)
    panel.set_yticks(range(len(by_dataset)), list(by_dataset))
    panel.invert_yaxis()
    panel.set_xlabel("largest batch prefilled (prompts)")
    failed = [row for both in found for each in both.values() for row in each.rows if row.status == "oom"]
    panel.set_title(titled(failed), fontsize=9)
    legend(drawn, METHODS)
    finish_axes(panel)
    return drawn
