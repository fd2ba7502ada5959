"""Which attention kernel: each batch layout under each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ...prefilling.methods import method_of
from ...records.groups import Methods, in_turns, place_of
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, significant, times
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
CLOSE = 1.02  # kernels within so much of the fastest are named together
Found = list[Methods]


def select(records: Sequence[Record]) -> Found:
    """The comparisons, their methods by layout and kernel."""
    found = in_turns(clean(records, protocol="modern"), *KIND)
    groups = [found[key] for key in sorted(found, key=str)]
    return [{name: methods[name] for name in sorted(methods, key=lambda name: (place_of(name), name))}
            for methods in groups if any(row.status == "ok" for row in methods.values())]  # fmt: skip


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
    for methods in found:
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
    told = [_advice(methods) for methods in found]
    failed = [row for methods in found for row in methods.values() if row.status != "ok"]
    return [*told, *dict.fromkeys(notes_of(failed))]


def _advice(methods: Methods) -> str:
    """Which layout and kernel to take for one kind of prompts, and what the dense mask costs bins."""
    rows = sorted((row for row in methods.values() if row.status == "ok"), key=lambda row: _beside(row, methods) or 0.0)
    close = [row for row in rows if (_beside(row, methods) or 0.0) <= CLOSE]
    named = " or ".join(f"{row.method.partition('+')[0]} with {_kernel(row)}" for row in close)
    said = f"{rows[0].dataset}: take {named}"
    masked = methods.get(f"{PACKED}+dense")
    plain = next((row for row in rows if row.method.startswith(PACKED) and row is not masked), None)  # the fastest
    if masked and plain and masked.seconds_per_batch_mean and plain.seconds_per_batch_mean:
        longer = masked.seconds_per_batch_mean / plain.seconds_per_batch_mean
        said += f"; under a dense mask prepacking takes {longer:.2f} times as long as by {_kernel(plain)}"
        if masked.speedup_over_full_batching:
            gains = "still gains" if masked.speedup_over_full_batching > 1 else "loses"
            said += f", and {gains} over padded rows ({masked.speedup_over_full_batching:.2f}x)"
    return said


def claims(found: Found) -> list[Claim]:
    """The paper compares no kernels."""
    return []


def figure(found: Found) -> Any:
    """A heat map: a line for each layout and kernel, a column for each kind of prompts, time over the fastest."""
    names = list(dict.fromkeys(name for methods in found for name in methods))
    names.sort(key=lambda name: (place_of(name), name))
    shown = [name for name in names if any(methods[name].status == "ok" for methods in found if name in methods)]
    if not shown:
        return None
    grid = np.array([[_value(methods, name) for methods in found] for name in shown])
    drawn, panel = plt.subplots(figsize=(2.6 + 1.3 * len(found), 1.2 + 0.36 * len(shown)), layout="constrained")
    drawn_grid = panel.imshow(np.log2(grid), cmap="viridis_r", aspect="auto", vmin=0)
    rows = [row for methods in found for row in methods.values()]
    panel.set_xticks(range(len(found)), [next(iter(methods.values())).dataset for methods in found])
    first = next(iter(found[0].values()))
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
