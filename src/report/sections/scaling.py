"""Time against useful tokens, and memory, as batches grow to a thousand prompts, and prompts to many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ...records.groups import place_of
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, signed, thousands
from ..comparison import per_batch
from ..plots import STYLE, finish_axes, titled, whisker
from ..section import Claim
from ..select import PACKED, clean
from ..words import label, model_name
from ..words import notes as notes_of

PLACE = 13
TITLE = "Time against useful tokens"
LEAD = (
    "One batch each, of short prompts (mmlu) or long ones (azure-conv). Without padding, time is close to a straight "
    "line in useful tokens, but for attention, which grows with the square of a prompt's length."
)
FREE = "padding-free"
COLUMNS = (
    Column("Method"), Column("Dataset"), Column("Model"), Column("Prompts"), Column("Longest (tokens)"),
    Column("Useful tokens", thousands), Column("Seconds", fixed(3)), Column("µs per useful token", fixed(0)),
    Column("Peak memory (MB)", fixed(0), "n/a"), Column("Must hold (MB)", fixed(0), "n/a"),
    Column("Over that (%)", signed),
)  # fmt: skip
Found = list[Row]


def select(records: Sequence[Record]) -> Found:
    """The batches that both methods prefilled."""
    rows = clean(records, protocol="modern", metric="prefill", method=(PACKED, FREE))
    beside = {row.comparison_id for row in rows if row.method == FREE}
    rows = [row for row in rows if row.comparison_id in beside]
    return sorted(rows, key=lambda row: (row.model, row.dataset, place_of(row.method), row.useful_tokens or 0))


def table(found: Found) -> Table:
    """A row for each method and batch."""
    body = [
        {"Method": label(row), "Dataset": row.dataset, "Model": model_name(row), "Prompts": row.batch_size,
         "Longest (tokens)": row.longest_prompt_tokens, "Useful tokens": row.useful_tokens or 0,
         "Seconds": per_batch(row),
         "µs per useful token": 1e6 / row.useful_tokens_per_s if row.useful_tokens_per_s else None,
         "Peak memory (MB)": row.peak_memory_mb, "Must hold (MB)": row.must_hold_mb,
         "Over that (%)": row.memory_overhead_pct}
        for row in found
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in found])


def notes(found: Found) -> list[str]:
    """What failed."""
    return notes_of([row for row in found if row.status != "ok"])


def claims(found: Found) -> list[Claim]:
    """The paper claims nothing of this."""
    return []


def figure(found: Found) -> Any:
    """Time and memory over useful tokens, a line for each method and dataset."""
    rows = [row for row in found if row.status == "ok"]
    if not rows:
        return None
    rows = [row for row in rows if row.model_hash == rows[0].model_hash]
    drawn, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for dataset, method in dict.fromkeys((row.dataset, row.method) for row in rows):
        line = [row for row in rows if (row.dataset, row.method) == (dataset, method)]
        style: dict[str, Any] = {
            "color": STYLE[method]["color"], "marker": "o" if dataset == "mmlu" else "s",
            "linestyle": "-" if dataset == "mmlu" else "--", "label": f"{method}, {dataset}", "markersize": 4,
        }  # fmt: skip
        tokens = [row.useful_tokens or 0 for row in line]
        panels[0].plot(tokens, [row.seconds_per_batch_mean for row in line], **style)
        for row in line:
            whisker(panels[0], row.useful_tokens or 0, row.interval("seconds_per_batch_mean"), color=style["color"])
        panels[1].plot(tokens, [row.peak_memory_mb or np.nan for row in line], **style)
    for panel, name in zip(panels, ("seconds per batch (95 % interval)", "peak memory (MB)"), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("useful tokens in the batch")
        panel.set_ylabel(name)
        finish_axes(panel)
    panels[0].legend(frameon=False, fontsize=7)
    drawn.suptitle(titled(rows), fontsize=9)
    return drawn
