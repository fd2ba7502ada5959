"""Speedup of prepacking over full-batching as batches grow, and what it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from ... import paper
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, times
from ..claims import decided, differences, judged, not_run
from ..comparison import speedup
from ..plots import COLORS, MARKERS, finish_axes, titled, whisker
from ..section import Claim
from ..select import BASE, DATASETS, PACKED, clean, one_kind, order, over, published_as
from ..words import MODELS, model_name
from ..words import notes as notes_of

PLACE = 3
TITLE = "Speedup by batch size (figure of speedup over batch size)"
LEAD = (
    "Prefill speedup of prepacking over full-batching. It is the product of three measured ratios: tokens that "
    "full-batching computes over those of prepacking, the rate at which each token is computed, and the share of the "
    "time that is the model's forward (the rest is packing, transfer and unpacking)."
)
# The other two measured the same methods on the same prompts at batch sizes that this one leaves out on a CPU.
TAKES = ("speedup_by_batch_size", "dataset_level", "speedup_predictors")
SIZES = (4, 8, 16, 32, 64)
TOKENS = "Tokens computed: full / packed"
RATE = "Rate per token: packed / full"
SHARE = "Share of forward: packed / full"
COLUMNS = (
    Column("Dataset"), Column("Model"), Column("Batch"), Column("Speedup", times), Column(TOKENS, fixed(2)),
    Column(RATE, fixed(2)), Column(SHARE, fixed(2)), Column("Paper: speedup", times),
    Column("Ours / paper's", fixed(2)),
)  # fmt: skip
Found = dict[tuple[Any, ...], dict[str, Row]]  # by model, bits, dataset and batch size the rows of both methods


def select(records: Sequence[Record]) -> Found:
    """The comparisons of datasets that were measured at several batch sizes, in the order of the table."""
    rows = one_kind(clean(records, dataset=DATASETS, method=(PACKED, BASE), metric="prefill"))
    kinds = in_turns(rows, "model", "loadbit", "dataset", "batch_size")
    groups: Found = {key: methods for key, methods in kinds.items() if {PACKED, BASE} <= methods.keys()}
    curves = Counter(key[:3] for key in groups)
    return {key: groups[key] for key in sorted(groups, key=_place) if curves[key[:3]] > 1}


def _place(key: tuple[Any, ...]) -> tuple[Any, ...]:
    model, bits, dataset, size = key
    return model, bits, order(dataset), size


def table(found: Found) -> Table:
    """A row for each dataset and batch size, with the speedup's three factors."""
    body = []
    for (model, _, dataset, size), methods in found.items():
        packed, base = methods[PACKED], methods[BASE]
        theirs = paper.speedup(published_as(model), dataset, size)
        both = packed.status == base.status == "ok"
        body.append({
            "Dataset": dataset, "Model": model_name(packed), "Batch": size,
            "Speedup": speedup(packed) if both else f"{packed.status} / {base.status}", **_factors(packed, base),
            "Paper: speedup": theirs, "Ours / paper's": over(packed.speedup_over_full_batching, theirs),
        })  # fmt: skip
    runs = [[methods[PACKED].run_id, methods[BASE].run_id] for methods in found.values()]
    return make_table(COLUMNS, body, runs)


def _factors(packed: Row, base: Row) -> dict[str, float]:
    """The speedup's three factors, whose product it is; none where a method has no time."""

    def forward(row: Row) -> tuple[float, float] | None:
        """Tokens a second of the forward, and its share of the time."""
        if row.status != "ok" or not row.forward_s_mean or not row.computed_tokens or not row.seconds_per_batch_mean:
            return None
        seconds = row.forward_s_mean * row.num_batches
        return row.computed_tokens / seconds, row.forward_s_mean / row.seconds_per_batch_mean

    p, b = forward(packed), forward(base)
    if not p or not b or not packed.computed_tokens or not base.computed_tokens:
        return {}
    return {TOKENS: base.computed_tokens / packed.computed_tokens, RATE: p[0] / b[0], SHARE: p[1] / b[1]}


def notes(found: Found) -> list[str]:
    """What failed."""
    return notes_of([methods[PACKED] for methods in found.values() if methods[PACKED].status != "ok"])


def claims(found: Found) -> list[Claim]:
    """The largest speedup, and the order of the datasets."""
    ok = [row for row in _packed(found).values() if row.speedup_over_full_batching]
    best = max(ok, key=lambda row: row.speedup_over_full_batching or 0, default=None)
    ours = best.interval("speedup_over_full_batching") if best else None
    text = "The larger the batch, the larger the speedup: up to six times"
    return [
        judged(text, best, ours, paper.speedup("llama2-1.3b", "mmlu", 64), batch_size=64),
        _order_of_datasets(_packed(found)),
    ]


def _packed(found: Found) -> dict[tuple[Any, ...], Row]:
    """Prepacking's rows that have a speedup."""
    rows = {key: methods[PACKED] for key, methods in found.items()}
    return {key: row for key, row in rows.items() if row.speedup_over_full_batching}


def _order_of_datasets(found: dict[tuple[Any, ...], Row]) -> Claim:
    """Whether datasets rank as in the paper, at the largest batch size that has most of them."""
    text = "Datasets rank alike by speedup"
    by_size: dict[int, list[tuple[float, float]]] = {}
    for (model, _, dataset, size), row in found.items():
        theirs = paper.speedup(published_as(model), dataset, size)
        if theirs and row.speedup_over_full_batching:
            by_size.setdefault(size, []).append((row.speedup_over_full_batching, theirs))
    size = max(by_size, key=lambda size: (len(by_size[size]), size), default=0)
    if len(by_size.get(size, [])) < 3:
        return not_run(text, why="fewer than three datasets were measured")
    rank = float(scipy.stats.spearmanr(*zip(*by_size[size], strict=True)).statistic)
    said = f"{text} (rank correlation, batches of {size})"
    return decided(said, "1", f"{rank:.2f}", rank >= 0.8, differences(next(iter(found.values()))))


def figure(found: Found) -> Any:
    """A curve for each dataset, the paper's beside ours."""
    packed = _packed(found)
    if not packed:
        return None
    drawn, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    model = next(iter(packed))[0]
    for dataset in sorted({key[2] for key in packed}, key=order):
        color = COLORS[dataset]
        style: dict[str, Any] = {"marker": MARKERS[dataset], "color": color, "markersize": 5, "linewidth": 1.4}
        points = [(key[3], row) for key, row in packed.items() if key[0] == model and key[2] == dataset]
        y = [row.speedup_over_full_batching or np.nan for _, row in points]
        ours.plot([size for size, _ in points], y, label=dataset, **style)
        for size, row in points:
            whisker(ours, size, row.interval("speedup_over_full_batching"), color=color)
        published = ((size, paper.speedup(published_as(model), dataset, size)) for size in SIZES)
        known = [(size, value) for size, value in published if value]
        theirs.plot([size for size, _ in known], [value for _, value in known], linestyle="--", **style)
    top = 1.1 * max(row.speedup_over_full_batching or 0 for row in packed.values())
    ours.set_ylabel("speedup over full-batching (95 % interval)")
    shown = [row for key, row in packed.items() if key[0] == model]
    names = (f"here: {titled(shown)}", f"paper: {MODELS[published_as(model)]}, {paper.GPU}")
    for panel, name in zip((ours, theirs), names, strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xticks(SIZES, list(map(str, SIZES)))
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set_ylim(0, max(7, top))
        panel.set_xlabel("batch size (prompts)")
        panel.set_title(name, fontsize=9)
        finish_axes(panel)
    ours.legend(frameon=False, fontsize=8)
    return drawn
