"""The authors' example table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from ... import paper
from ...interval import Interval
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, times
from ..claims import judged
from ..comparison import per_batch, speedup
from ..plots import bars, finish_axes, titled
from ..section import Claim
from ..select import BASE, ORDERED, PACKED, clean, over
from ..words import UNITS, label, model_name
from ..words import notes as notes_of

PLACE = 1
TITLE = "The authors' example table (their README)"
LEAD = (
    "Prepacking, full-batching and length-ordered batching on MMLU; the authors' figures are of Llama2-1.3B in batches "
    "of 64 on an NVIDIA A6000."
)
METHODS = (PACKED, BASE, ORDERED)
COLUMNS = (
    Column("Method"), Column("Metric"), Column("Model"), Column("Batch"), Column("s / batch", fixed(3)),
    Column("Max util (%)", fixed(0), "n/a"), Column("Peak memory (MB)", fixed(0), "n/a"),
    Column("Mean util (%)", fixed(0), "n/a"), Column("Std (s)", fixed(3), "n/a"),
    Column("Speedup over full-batching", times), Column("Paper: s / batch", fixed(3)),
    Column("Paper: peak memory (MB)", fixed(0)), Column("Paper: speedup", times),
)  # fmt: skip
Found = dict[str, dict[str, Row]]  # by metric the rows of each method


def select(records: Sequence[Record]) -> Found:
    """The three methods at the largest batch size, by metric, model and bits."""
    rows = clean(records, dataset="mmlu", method=METHODS, protocol="paper", batch_size=(32, 64))
    kinds = in_turns(rows, "model", "loadbit", "batch_size", "metric")
    groups = {key: methods for key, methods in kinds.items() if len(methods) == 3}
    largest = max((int(str(key[2])) for key in groups), default=0)
    return {" ".join(map(str, key)): methods for key, methods in groups.items() if key[2] == largest}


def table(found: Found) -> Table:
    """A row for each method, the authors' figures beside ours."""
    body: list[dict[str, Any]] = []
    rows = [methods[name] for methods in found.values() for name in METHODS]
    for row in rows:
        line = {
            "Method": label(row), "Metric": UNITS[row.metric], "Model": model_name(row), "Batch": row.batch_size,
            "s / batch": per_batch(row), "Max util (%)": row.max_utilization_pct,
            "Peak memory (MB)": row.peak_memory_mb, "Mean util (%)": row.mean_utilization_pct,
            "Std (s)": row.seconds_per_batch_std, "Speedup over full-batching": speedup(row),
        }  # fmt: skip
        if row.metric == "prefill":
            line["Paper: s / batch"] = _published(row.method, "avg_prefill_s_per_batch")
            line["Paper: peak memory (MB)"] = _published(row.method, "max_gpu_memory_mb")
            line["Paper: speedup"] = _published_speedup(row.method)
        body.append(line)
    return make_table(COLUMNS, body, [[row.run_id] for row in rows])


def notes(found: Found) -> list[str]:
    """What must stand below the table."""
    return notes_of([methods[name] for methods in found.values() for name in METHODS])


def claims(found: Found) -> list[Claim]:
    """Prepacking's speedup."""
    prefill = (methods[PACKED] for methods in found.values() if methods[PACKED].metric == "prefill")
    packed = next(prefill, None)
    text = "Prepacking prefills batches of 64 MMLU prompts five times as fast as full-batching"
    ours: Interval | None = packed.interval("speedup_over_full_batching") if packed else None
    return [judged(text, packed, ours, _published_speedup(PACKED), batch_size=64)]


def figure(found: Found) -> Any:
    """Seconds per batch of each method, a panel for each metric."""
    drawn, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 2.6), squeeze=False, layout="constrained")
    for panel, methods in zip(axes.flat, found.values(), strict=True):
        bars(panel, [methods[name] for name in METHODS])
        panel.set_xlabel("seconds per batch (mean, 95 % interval)")
        panel.set_title(titled(methods.values()), fontsize=9)
        finish_axes(panel)
    return drawn


def _published(method: str, column: str) -> float | None:
    return paper.find("readme_example_table", column, method=method)


def _published_speedup(method: str) -> float | None:
    column = "avg_prefill_s_per_batch"
    return over(_published(BASE, column), _published(method, column))
