"""Which attention kernel: each batch layout under each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ... import stats
from ...interval import Interval
from ...prefilling.methods import method_of
from ...records.groups import Methods, in_turns, place_of
from ...records.row import Row
from ...records.store import Record
from ...stats import Seconds
from ..cells import Column, Table, fixed, make_table, significant, tells, times
from ..comparison import per_batch
from ..plots import titled
from ..section import Claim
from ..select import PACKED, clean
from ..words import model_name
from ..words import notes as notes_of

PLACE = 11
TITLE = "Which attention kernel"
LEAD = (
    "Each layout of a batch (padded rows, bins, one row) under each attention kernel, in turns. Pairs: query-key pairs "
    "that attention computes, over those that the prompts need. Attention: its share of the time of one profiled "
    "batch. Over the fastest: this line's time over that of the fastest line with the same prompts."
)
LAYOUTS = {"prompt": "padded rows", "bin": "bins", "batch": "one row"}
COLUMNS = (
    Column("Prompts"), Column("Layout"), Column("Method"), Column("Kernel"), Column("Backend"), Column("Model, type"),
    Column("Batch"), Column("s / batch", fixed(4)), Column("Over full-batching", times),
    Column("Over the fastest", times), Column("Mask (ms)", significant), Column("Attention (%)", fixed(0)),
    Column("Pairs", fixed(2)), Column("Compiled in (s)", fixed(1)), Column("Peak memory (MB)", fixed(0), "n/a"),
)  # fmt: skip
KIND = ("dataset", "model", "dtype", "batch_size", "num_prompts", "forward", "dataset_max_tokens")


@dataclass(frozen=True)
class Measured:
    """One comparison: its rows by method, in the order of the table, and the samples of those that can be read."""

    rows: Methods
    seconds: dict[str, Seconds]

    def over(self, name: str, other: str) -> Interval | None:
        """A method's time over another's, measured in turns on the same batches; None where either has no samples."""
        both = self.seconds.get(name), self.seconds.get(other)
        if both[0] is None or both[1] is None or both[0].shape != both[1].shape:
            return None
        doubted = self.rows[name].doubted or self.rows[other].doubted
        return replace(stats.speedup_interval(both[0], both[1], same_batches=True), invalid=doubted)


Found = list[Measured]


def select(records: Sequence[Record]) -> Found:
    """The comparisons, their methods by layout and kernel."""
    by_run = {record.row.run_id: record for record in records}
    found, groups = in_turns(clean(records, protocol="modern"), *KIND), []
    for key in sorted(found, key=str):
        rows = {name: found[key][name] for name in sorted(found[key], key=lambda name: (place_of(name), name))}
        done = [name for name, row in rows.items() if row.status == "ok"]
        samples = {name: by_run[rows[name].run_id].whole_seconds() for name in done}
        if done:
            groups.append(Measured(rows, {name: each for name, each in samples.items() if each is not None}))
    return groups


def _kernel(row: Row) -> str:
    return row.attention_asked or "auto"


def _layout(row: Row) -> str:
    return LAYOUTS[method_of(row.method).rows]


def _fastest(methods: Methods) -> float:
    return min(row.seconds_per_batch_mean for row in methods.values() if row.seconds_per_batch_mean is not None)


def _beside(row: Row, methods: Methods) -> float | None:
    """A row's time over that of the fastest one measured in turns with it."""
    return None if row.seconds_per_batch_mean is None else row.seconds_per_batch_mean / _fastest(methods)


def table(found: Found) -> Table:
    """A line for each layout and kernel."""
    body, ids = [], []
    for methods in (each.rows for each in found):
        for row in methods.values():
            if row.status != "ok":
                continue
            share = row.attention_share
            body.append({
                "Prompts": row.dataset, "Layout": _layout(row), "Method": row.method.partition("+")[0],
                "Kernel": _kernel(row), "Backend": row.attention_kernel or row.attention,
                "Model, type": f"{model_name(row)}, {row.dtype}", "Batch": row.batch_size, "s / batch": per_batch(row),
                "Over full-batching": row.interval("speedup_over_full_batching"),
                "Over the fastest": _beside(row, methods),
                "Mask (ms)": None if row.mask_s_mean is None else 1000 * row.mask_s_mean,
                "Attention (%)": None if share is None else 100 * share, "Pairs": row.attention_pairs_ratio,
                "Compiled in (s)": row.compile_s, "Peak memory (MB)": row.peak_memory_mb,
            })  # fmt: skip
            ids.append([row.run_id])
    return make_table(COLUMNS, body, ids)


def notes(found: Found) -> list[str]:
    """Which kernel to take when, and what could not be measured."""
    told = [_advice(each) for each in found]
    failed = [row for each in found for row in each.rows.values() if row.status != "ok"]
    return [*told, *dict.fromkeys(notes_of(failed))]


def _advice(measured: Measured) -> str:
    """Which layout and kernel to take for one kind of prompts, and what the dense mask costs bins.

    A line is named beside the fastest unless the whole interval of its time over that one's lies above 1.
    """
    methods = measured.rows
    done = sorted((name for name in methods if methods[name].status == "ok"), key=lambda name: _value(methods, name))
    first, *others = done
    level = [name for name in others if _side(measured.over(name, first)) < 1]
    said = f"{methods[first].dataset}: fastest is {_named(methods[first])}"
    if level:
        said += f"; not told from it: {', '.join(_named(methods[name]) for name in level)}"
    masked = f"{PACKED}+dense"
    plain = next((name for name in done if name.startswith(PACKED) and name != masked), None)  # the fastest
    longer = measured.over(masked, plain) if plain else None
    if plain and longer and masked in methods:
        said += f"; under a dense mask prepacking takes {times(longer)} the time that {_kernel(methods[plain])} takes"
        gain = methods[masked].interval("speedup_over_full_batching")
        if gain is not None:
            words = {1: "still gains", -1: "loses", 0: "neither surely gains nor loses"}[_side(gain)]
            said += f", and {words} over padded rows ({times(gain)})"
    return said


def _named(row: Row) -> str:
    return f"{row.method.partition('+')[0]} with {_kernel(row)}"


def _side(ratio: Interval | None) -> int:
    """On which side of 1 a ratio surely lies, 1 above and -1 below; 0 where it cannot be told."""
    if ratio is None or ratio.invalid or not tells(ratio.low, ratio.high):
        return 0
    return int(ratio.low > 1) - int(ratio.high < 1)


def claims(found: Found) -> list[Claim]:
    """The paper compares no kernels."""
    return []


def figure(found: Found) -> Any:
    """A heat map: a line for each layout and kernel, a column for each kind of prompts, time over the fastest."""
    groups = [each.rows for each in found]
    names = list(dict.fromkeys(name for methods in groups for name in methods))
    names.sort(key=lambda name: (place_of(name), name))
    shown = [name for name in names if any(methods[name].status == "ok" for methods in groups if name in methods)]
    if not shown:
        return None
    grid = np.array([[_value(methods, name) for methods in groups] for name in shown])
    drawn, panel = plt.subplots(figsize=(2.6 + 1.3 * len(groups), 1.2 + 0.36 * len(shown)), layout="constrained")
    drawn_grid = panel.imshow(np.log2(grid), cmap="viridis_r", aspect="auto", vmin=0)
    rows = [row for methods in groups for row in methods.values()]
    panel.set_xticks(range(len(groups)), [next(iter(methods.values())).dataset for methods in groups])
    first = next(iter(groups[0].values()))
    panel.set_yticks(range(len(shown)), [f"{LAYOUTS[method_of(name).rows]}, {method_of(name).attention or 'auto'}"
                                         for name in shown])  # fmt: skip
    dark = np.nanmax(np.log2(grid)) / 2
    for (line, column), value in np.ndenumerate(grid):
        text = "n/a" if np.isnan(value) else f"{value:.2f}"
        color = "white" if np.log2(value) > dark else "black"
        panel.text(column, line, text, ha="center", va="center", fontsize=8, color=color)
    bar = drawn.colorbar(drawn_grid, ax=panel)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32) if np.log2(tick) <= np.nanmax(np.log2(grid)) + 0.01]
    bar.set_ticks(list(np.log2(ticks)), labels=[f"{tick:g}" for tick in ticks])
    bar.set_label("time over the fastest")
    panel.set_title(titled([row for row in rows if row.dtype == first.dtype]), fontsize=8)
    return drawn


def _value(methods: Methods, name: str) -> float:
    value = _beside(methods[name], methods) if name in methods else None
    return float("nan") if value is None else value
