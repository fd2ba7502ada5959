"""Peak memory and utilization of each method on each dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt

from ... import paper
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, signed
from ..claims import INVALID, decided, not_run, unlike
from ..comparison import marked
from ..plots import finish_axes, grouped_bars, legend, titled
from ..section import CANNOT_TELL, FAILS, HOLDS, Claim
from ..select import BASE, DATASETS, ORDERED, PACKED, clean, memory_of, memory_ratio, one_kind, order, over
from ..words import label, model_name
from ..words import notes as notes_of

PLACE = 7
TITLE = "Memory and utilization"
LEAD = (
    "Peak memory of each method beside what it must hold (weights, keys and values of the prompts' own tokens, "
    "logits), and how busy the device was. On a CPU: resident memory of the process, utilization of its cores."
)
TAKES = ("time_by_dataset", "readme_table", "faults")  # the claim is on the batches of the second and third
METHODS = (PACKED, BASE, ORDERED)
SAMPLE = 1.25  # by how much samples of 1,000 prompts let the claim's ratio differ (paper.MEMORY_RATIO_SPREAD)
COLUMNS = (
    Column("Dataset"), Column("Model"), Column("Method"), Column("Peak memory (MB)", fixed(0), "n/a"),
    Column("Must hold (MB)", fixed(0), "n/a"), Column("Over that (%)", signed),
    Column("Max util (%)", fixed(0), "n/a"), Column("Mean util (%)", fixed(0), "n/a"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """By model, bits and dataset the rows of each method, and the two methods of the claim.

    ``largest`` is without faults, ``kept`` with ``keeps-last-batch`` as the authors measured; empty: not measured.
    """

    groups: dict[tuple[Any, ...], dict[str, Row]]
    largest: dict[str, Row]
    kept: dict[str, Row]

    @property
    def rows(self) -> list[Row]:
        """The rows of the table, in its order."""
        return [methods[name] for methods in self.groups.values() for name in METHODS if name in methods]


def select(records: Sequence[Record]) -> Found:
    """Batches of 16 on six datasets; and the largest batches on MMLU as the authors' code computes them."""
    rows = one_kind(clean(records, dataset=DATASETS, method=METHODS, batch_size=16, experiment="time_by_dataset"))
    # Take the metric that all three methods were measured on; if both were, prefill, as in the authors' table.
    whole = {row.metric for row in rows if row.method == ORDERED}
    rows = [row for row in rows if row.metric == ("ttft" if whole == {"ttft"} else "prefill")]
    groups = in_turns(rows, "model", "loadbit", "dataset")
    ordered = sorted(groups.items(), key=lambda item: (str(item[0][:2]), order(str(item[0][2]))))
    return Found(dict(ordered), _largest(records, None), _largest(records, "keeps-last-batch"))


def _largest(records: Sequence[Record], fault: str | None) -> dict[str, Row]:
    """Both methods in the largest batches of MMLU prompts; of equal batches the authors' model and bits."""
    cleared = [replace(record, row=replace(record.row, faults=None)) for record in records
               if (record.row.faults or None) == fault]  # fmt: skip
    both = clean(cleared, dataset="mmlu", metric="prefill", protocol="paper", status="ok", method=(PACKED, BASE))
    kinds = in_turns(both, "batch_size", "model", "loadbit", "num_prompts")
    complete = {key: methods for key, methods in kinds.items() if len(methods) == 2}
    best = max(complete, key=lambda key: (key[0], -len(unlike(complete[key][PACKED], 64)), str(key)), default=None)
    return complete[best] if best else {}


def table(found: Found) -> Table:
    """A row for each method on each dataset."""
    body = [
        {
            "Dataset": row.dataset, "Model": model_name(row), "Method": label(row),
            "Peak memory (MB)": row.peak_memory_mb, "Must hold (MB)": row.must_hold_mb,
            "Over that (%)": row.memory_overhead_pct, "Max util (%)": row.max_utilization_pct,
            "Mean util (%)": marked(row.mean_utilization_pct, "" if row.utilization_valid else "†"),
        }
        for row in found.rows
    ]  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in found.rows])


def notes(found: Found) -> list[str]:
    """What must stand below the table."""
    return notes_of(found.rows)


def claims(found: Found) -> list[Claim]:
    """Peak memory of full-batching over prepacking's on MMLU, as in the authors' table.

    The authors' figure holds the batch before's results too, so it is set beside ours with that fault where it was
    measured, and equals it anywhere in the spread that samples of MMLU give such a ratio.
    """
    text = "Full-batching needs more than twice the memory of prepacking in the paper's prefill of large MMLU batches"
    rule = (
        f"its peak memory (on a CPU above the process without weights) is more than {2 * SAMPLE:g} times prepacking's, "
        f"as the ratio of one sample of prompts may be {100 * (SAMPLE - 1):.0f} % off; it does not below "
        f"{2 / SAMPLE:g} times"
    )
    base, packed = (paper.find("readme_example_table", "max_gpu_memory_mb", method=name) for name in (BASE, PACKED))
    low, high = paper.MEMORY_RATIO_SPREAD
    theirs = over(base, packed)
    published = f"{theirs:.2f}x of one sample; 90 % of samples would lie in {low} to {high}"
    if not found.largest:
        return [not_run(text, rule, published)]
    ratio = memory_ratio(found.largest[BASE], found.largest[PACKED])
    row = found.kept.get(PACKED, found.largest[PACKED])
    kept = memory_ratio(found.kept[BASE], found.kept[PACKED]) if found.kept else None
    if ratio is None:
        return [not_run(text, rule, published, "no peak memory was recorded")]
    verdict = HOLDS if ratio > 2 * SAMPLE else FAILS if ratio < 2 / SAMPLE else CANNOT_TELL
    ours = f"{ratio:.2f}x, batches of {found.largest[PACKED].batch_size}"
    ours += "" if kept is None else f"; {kept:.2f}x with the batch before's results kept, batches of {row.batch_size}"
    ours += memory_of(row)
    apart = unlike(row, 64) + (() if kept else ("without keeps-last-batch (paper: with it)",))
    why = "" if verdict == HOLDS else "of one sample"
    if any(each.doubted for each in found.largest.values()):
        verdict, why = CANNOT_TELL, INVALID
    sure = kept is not None and not any(each.doubted for each in found.kept.values())
    return [decided(text, rule, (verdict, why), ours, published, apart, low <= (kept or 0) <= high if sure else None)]


def figure(found: Found) -> Any:
    """Bars of peak memory on each dataset, of the model that was measured on most of them."""
    model = Counter(key[:2] for key in found.groups).most_common(1)[0][0]
    of_model = {key[2]: methods for key, methods in found.groups.items() if key[:2] == model}
    names = sorted(of_model, key=order)
    drawn, panel = plt.subplots(figsize=(9, 3.4), layout="constrained")
    groups = [of_model[name] for name in names]
    for x, row in grouped_bars(panel, groups, METHODS, "peak_memory_mb"):
        if row.must_hold_mb:
            rest = row.resident_rest_mb or 0.0
            panel.hlines(row.must_hold_mb + rest, x - 0.125, x + 0.125, color="black", linewidth=2)
    panel.set_xticks(range(len(names)), names)
    panel.set_ylabel("peak memory (MB)\nlines: what must be held, and the\nprocess without weights")
    shown = [row for methods in groups for row in methods.values()]
    panel.set_title(titled(shown), fontsize=9)
    legend(drawn, [name for name in METHODS if any(row.method == name for row in shown)])
    finish_axes(panel)
    return drawn
