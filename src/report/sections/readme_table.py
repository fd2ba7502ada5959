"""The authors' example table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from ... import paper
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Spread, Table, fixed, make_table, spread, times
from ..claims import against, close, decided, most_alike, not_run, unlike
from ..comparison import per_batch, speedup
from ..plots import bars, finish_axes, titled
from ..section import Claim
from ..select import BASE, ORDERED, PACKED, clean, published_as, speedup_of
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
    Column("Speedup over full-batching", times), Column("Paper: s / batch, std", spread(3)),
    Column("Paper: max util (%)", fixed(0)), Column("Paper: peak memory (MB)", fixed(0)),
    Column("Paper: mean util, std (%)", spread(1)), Column("Paper: speedup", times),
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
        if row.metric == "prefill" and published_as(row.model, row.loadbit) == "llama2-1.3b":
            line |= _published_line(row.method)
        body.append(line)
    return make_table(COLUMNS, body, [[row.run_id] for row in rows])


def notes(found: Found) -> list[str]:
    """What must stand below the table."""
    figure_of_speedups = paper.speedup("llama2-1.3b", "mmlu", 64)
    said = (
        f"the authors publish two speedups of this setting: {_published_speedup(PACKED):.2f}x in their README, "
        f"{figure_of_speedups:.2f}x in their figure of speedup over batch size"
    )
    return [*notes_of([methods[name] for methods in found.values() for name in METHODS]), said]


def claims(found: Found) -> list[Claim]:
    """Prepacking's speedup."""
    text = "Prepacking prefills large batches of MMLU prompts more than twice as fast as full-batching"
    rule = "the 95 % interval of the speedup lies above 2; it does not if it lies below"
    theirs = _published_speedup(PACKED)
    published = f"{theirs:.2f}x"
    prefill = {methods[PACKED].run_id: methods for methods in found.values() if methods[PACKED].metric == "prefill"}
    row = most_alike([methods[PACKED] for methods in prefill.values()], batch_size=64)
    if row is None:
        return [not_run(text, rule, published)]
    ours = speedup_of(prefill[row.run_id])
    shown = f"{times(ours)}, batches of {row.batch_size}" if ours else row.status
    apart = unlike(row, batch_size=64)
    return [decided(text, rule, against([ours], 2), shown, published, apart, close(ours, theirs))]


def figure(found: Found) -> Any:
    """Seconds per batch of each method, a panel for each metric."""
    drawn, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 2.6), squeeze=False, layout="constrained")
    for panel, methods in zip(axes.flat, found.values(), strict=True):
        bars(panel, [methods[name] for name in METHODS])
        panel.set_xlabel("seconds per batch (mean, 95 % interval)")
        panel.set_title(titled(methods.values()), fontsize=9)
        finish_axes(panel)
    return drawn


def _published(method: str, column: str) -> float:
    found = paper.find("readme_example_table", column, method=method)
    assert found is not None
    return found


def _published_line(method: str) -> dict[str, Any]:
    """The authors' figures of a method."""
    seconds, std = _published(method, "avg_prefill_s_per_batch"), _published(method, "std_time_s")
    mean, mean_std = _published(method, "mean_gpu_util_pct"), _published(method, "std_mean_gpu_util_pct")
    return {
        "Paper: s / batch, std": Spread(seconds, std), "Paper: max util (%)": _published(method, "max_gpu_util_pct"),
        "Paper: peak memory (MB)": _published(method, "max_gpu_memory_mb"),
        "Paper: mean util, std (%)": Spread(mean, mean_std), "Paper: speedup": _published_speedup(method),
    }  # fmt: skip


def _published_speedup(method: str) -> float:
    column = "avg_prefill_s_per_batch"
    return _published(BASE, column) / _published(method, column)
