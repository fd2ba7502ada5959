"""Speedup of prepacking over full-batching as batches grow, and what it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from ... import paper, stats
from ...interval import Interval
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table, times
from ..claims import against, decided, not_run, unlike
from ..comparison import speedup
from ..plots import COLORS, MARKERS, finish_axes, titled, whisker
from ..section import CANNOT_TELL, FAILS, HOLDS, Claim
from ..select import BASE, DATASETS, PACKED, clean, one_kind, order, over, published_as, speedup_of
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
DRAWS, RANKED = 2000, 0.5  # from the intervals; rank correlation with the paper's from which datasets rank alike
FEWEST_DATASETS = 4  # of which ranks say something
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
    for (model, bits, dataset, size), methods in found.items():
        packed, base = methods[PACKED], methods[BASE]
        theirs = paper.speedup(published_as(model, bits), dataset, size)
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
    """Whether larger batches gain more, and whether datasets gain in the paper's order."""
    speedups = {key: interval for key, methods in found.items() if (interval := speedup_of(methods))}
    packed = _packed(found)
    return [_growth(packed, speedups), _order_of_datasets(packed, speedups)]


def _packed(found: Found) -> dict[tuple[Any, ...], Row]:
    """Prepacking's rows that have a speedup."""
    rows = {key: methods[PACKED] for key, methods in found.items()}
    return {key: row for key, row in rows.items() if row.speedup_over_full_batching}


def _growth(packed: dict[tuple[Any, ...], Row], speedups: dict[tuple[Any, ...], Interval]) -> Claim:
    """Whether on every dataset the speedup in large batches is above that in small ones."""
    text = "The larger the batch, the larger the speedup"
    rule = (
        "on every dataset the speedup in the largest batches over that in the smallest, a ratio of two runs, has an "
        "interval above 1; it does not if any lies below"
    )
    ends = [paper.speedup("llama2-1.3b", "mmlu", size) for size in (SIZES[0], SIZES[-1])]
    published = f"mmlu: {ends[0]:.2f}x at {SIZES[0]}, {ends[1]:.2f}x at {SIZES[-1]}"
    curves: dict[tuple[Any, ...], dict[int, Interval]] = {}
    for (*curve, size), found in speedups.items():
        if not found.few:
            curves.setdefault(tuple(curve), {})[size] = found
    curves = {curve: sizes for curve, sizes in curves.items() if len(sizes) > 1}
    if not packed:
        return not_run(text, rule, published)
    both = [(sizes[max(sizes)], sizes[min(sizes)]) for sizes in curves.values()]
    verdict = against([stats.ratio_of_intervals(large, small) for large, small in both], 1)
    if missing := sorted({*DATASETS} - {curve[2] for curve in curves}):
        told = f"too few batches or repeats on {', '.join(missing)}"
        verdict = (CANNOT_TELL, told) if verdict[0] == HOLDS else verdict
    shown = max(curves, key=lambda curve: curves[curve][max(curves[curve])].value, default=None)
    ours = ""
    if shown:
        of = curves[shown]
        ours = f"{shown[2]}: " + ", ".join(f"{of[size].value:.2f}x at {size}" for size in (min(of), max(of)))
    return decided(text, rule, verdict, ours, published, unlike(next(iter(packed.values())), None, None))


def _order_of_datasets(packed: dict[tuple[Any, ...], Row], speedups: dict[tuple[Any, ...], Interval]) -> Claim:
    """Whether datasets rank as in the paper: of each model at the batch size that has most of them with an interval."""
    text = "Datasets of more uneven lengths gain more: they rank as in the paper"
    rule = (
        f"of {DRAWS:,} draws from each model's speedups' intervals 95 % have a rank correlation of at least {RANKED} "
        "with the paper's; it does not if 95 % of a model's have less"
    )
    if not packed:
        return not_run(text, rule, "1")
    of_model: dict[tuple[Any, ...], dict[int, list[tuple[Interval, float]]]] = {}
    for (model, bits, dataset, size), each in speedups.items():
        theirs = paper.speedup(published_as(model, bits), dataset, size)
        if theirs and not (each.few or each.invalid):
            of_model.setdefault((model, bits), {}).setdefault(size, []).append((each, theirs))
    shown, shares = [], []
    for (model, bits), by_size in of_model.items():
        size = max(by_size, key=lambda size: (len(by_size[size]), -abs(size - 16)))
        if len(by_size[size]) < FEWEST_DATASETS:
            continue
        ours, published = zip(*by_size[size], strict=True)
        name = next(f"{model_name(row)}, " for key, row in packed.items() if key[:2] == (model, bits))
        rank = float(scipy.stats.spearmanr([each.value for each in ours], published).statistic)
        shown.append(f"rank correlation {rank:.2f}, {name * (len(of_model) > 1)}batches of {size}")
        shares.append(_alike(ours, published))
    apart = unlike(next(iter(packed.values())), None, None)
    if not shares:
        return decided(
            text, rule, (CANNOT_TELL, "fewer than four datasets in enough batches and repeats"), "", "1", apart
        )
    verdict = HOLDS if min(shares) >= 0.95 else FAILS if min(shares) <= 0.05 else CANNOT_TELL
    why = "" if verdict == HOLDS else f"{100 * min(shares):.0f} % of draws"
    return decided(text, rule, (verdict, why), "; ".join(shown), "1", apart)


def _alike(ours: Sequence[Interval], published: Sequence[float]) -> float:
    """The share of draws from our intervals whose rank correlation with the paper's figures is at least ``RANKED``."""
    rng = np.random.default_rng(0)
    # Each interval is taken for that of a logarithm with equal spread on both sides.
    draws = np.array([
        np.log(each.value) + rng.standard_normal(DRAWS) * np.log(each.high / each.low) / (2 * 1.96) for each in ours
    ])  # fmt: skip
    ranks = scipy.stats.rankdata(draws, axis=0)
    wanted = scipy.stats.rankdata(published)
    found = [float(np.corrcoef(ranks[:, place], wanted)[0, 1]) for place in range(DRAWS)]
    return float(np.mean(np.array(found) >= RANKED))


def figure(found: Found) -> Any:
    """A curve for each dataset, the paper's beside ours."""
    packed = _packed(found)
    if not packed:
        return None
    drawn, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    model, bits = next(iter(packed))[:2]
    theirs_of = published_as(model, bits) or published_as(model, "4")
    for dataset in sorted({key[2] for key in packed}, key=order):
        color = COLORS[dataset]
        style: dict[str, Any] = {"marker": MARKERS[dataset], "color": color, "markersize": 5, "linewidth": 1.4}
        points = [(key[3], row) for key, row in packed.items() if key[:3] == (model, bits, dataset)]
        y = [row.speedup_over_full_batching or np.nan for _, row in points]
        ours.plot([size for size, _ in points], y, label=dataset, **style)
        for size, row in points:
            whisker(ours, size, row.interval("speedup_over_full_batching"), color=color)
        published = ((size, paper.speedup(theirs_of, dataset, size)) for size in SIZES)
        known = [(size, value) for size, value in published if value]
        theirs.plot([size for size, _ in known], [value for _, value in known], linestyle="--", **style)
    top = 1.1 * max(row.speedup_over_full_batching or 0 for row in packed.values())
    ours.set_ylabel("speedup over full-batching (95 % interval)")
    shown = [row for key, row in packed.items() if key[:2] == (model, bits)]
    names = (f"here: {titled(shown)}", f"paper: {MODELS[theirs_of]}, {paper.GPU}")
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
