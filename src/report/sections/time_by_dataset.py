"""Seconds per batch of 16 by dataset, metric and model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt

from ... import paper
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Spread, Table, fixed, make_table, spread, times
from ..claims import against, decided, not_run, unlike
from ..comparison import per_batch, speedup
from ..plots import finish_axes, grouped_bars, legend, room, titled, whisker
from ..section import CANNOT_TELL, HOLDS, Claim
from ..select import BASE, DATASETS, ORDERED, PACKED, clean, one_kind, order, over, published_as, speedup_of
from ..words import MODELS, UNITS, model_name
from ..words import notes as notes_of

PLACE = 2
TITLE = "Time per batch by dataset (figures of prefill and TTFT time)"
LEAD = (
    "Batches of 16 prompts from six datasets. The paper's speedup is of the same model where it has it, else of "
    "Llama2-1.3B."
)
# On a CPU this experiment measures TTFT only; the other two have prefill in batches of 16.
TAKES = ("time_by_dataset", "speedup_by_batch_size", "speedup_predictors")
METHODS = (PACKED, BASE, ORDERED)
COLUMNS = (
    Column("Dataset"), Column("Metric"), Column("Model"), Column("Prepacking (s)", fixed(3)),
    Column("Full-batching (s)", fixed(3)), Column("Length-ordered * (s)", fixed(3)),
    Column("Speedup over full-batching", times), Column("Paper: prepacking, std (s)", spread(3)),
    Column("Paper: full-batching, std (s)", spread(3)), Column("Paper: speedup", fixed(2, "x"), "n/a"),
    Column("Ours / paper's", fixed(2)),
)  # fmt: skip
Found = dict[tuple[Any, ...], dict[str, Row]]  # by metric, model, bits and dataset the rows of each method


def select(records: Sequence[Record]) -> Found:
    """Comparisons of batches of 16, in the order of the table."""
    rows = one_kind(clean(records, dataset=DATASETS, method=METHODS, batch_size=16))
    groups = in_turns(rows, "metric", "model", "loadbit", "dataset")
    return dict(sorted(groups.items(), key=lambda item: (*map(str, item[0][:3]), order(str(item[0][3])))))


def table(found: Found) -> Table:
    """A row for each comparison."""
    body = []
    for (metric, model, bits, dataset), methods in found.items():
        asked = {"metric": metric, "dataset": dataset, "model": published_as(model, bits)}
        base, packed = (_published(name, asked) for name in (BASE, PACKED))
        ours, published = methods.get(PACKED), base.mean / packed.mean if base and packed else None
        body.append({
            "Dataset": dataset, "Metric": UNITS[metric], "Model": model_name(next(iter(methods.values()))),
            "Prepacking (s)": per_batch(ours), "Full-batching (s)": per_batch(methods.get(BASE)),
            "Length-ordered * (s)": per_batch(methods.get(ORDERED)), "Speedup over full-batching": speedup(ours),
            "Paper: prepacking, std (s)": packed, "Paper: full-batching, std (s)": base, "Paper: speedup": published,
            "Ours / paper's": over(ours.speedup_over_full_batching if ours else None, published),
        })  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id for row in methods.values()] for methods in found.values()])


def _published(method: str, asked: dict[str, Any]) -> Spread | None:
    """Seconds a batch as the authors' figure has them."""
    mean, std = (paper.find("time_per_batch_by_dataset", column, method=method, **asked)
                 for column in ("seconds_per_batch", "std_s"))  # fmt: skip
    return None if mean is None or std is None else Spread(mean, std)


def notes(found: Found) -> list[str]:
    """What must stand below the table."""
    return notes_of([row for methods in found.values() for row in methods.values()])


def claims(found: Found) -> list[Claim]:
    """Whether prepacking is faster everywhere."""
    text = "Prepacking is faster than full-batching on every dataset, prefill and TTFT, in batches of 16"
    rule = "every 95 % interval of a speedup lies above 1; it does not if any lies below"
    published, done = (
        "all six datasets",
        {key: methods for key, methods in found.items() if {PACKED, BASE} <= methods.keys()},
    )
    if not done:
        return [not_run(text, rule, published)]
    speedups = [speedup_of(methods) for methods in done.values()]
    verdict, why = against(speedups, 1)
    faster = sum(methods[PACKED].speedup_verdict == "faster" for methods in done.values())
    wanted = {(metric, dataset) for metric in UNITS for dataset in DATASETS}
    if missing := sorted(wanted - {(key[0], str(key[3])) for key in done}):
        told = ", ".join(f"{UNITS[metric]} on {dataset}" for metric, dataset in missing)
        verdict, why = (CANNOT_TELL, f"not run: {told}") if verdict == HOLDS else (verdict, why)
    apart = unlike(next(iter(done.values()))[PACKED], 16, models=tuple(MODELS))
    return [decided(text, rule, (verdict, why), f"{faster} of {len(done)} comparisons", published, apart)]


def figure(found: Found) -> Any:
    """Bars of the datasets, a panel for each metric and model that has several."""
    wide = Counter(key[:3] for key in found)
    panels = [kind for kind in wide if wide[kind] > 1] or list(wide)
    lines, columns = -(-len(panels) // 2), min(2, len(panels))
    size = (6.2 * columns, 3.4 * lines)
    drawn, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, kind in zip(axes.flat, panels, strict=False):
        of_kind = {key[3]: methods for key, methods in found.items() if key[:3] == kind}
        for x, row in grouped_bars(panel, [*of_kind.values()], METHODS, "seconds_per_batch_mean"):
            whisker(panel, x, row.interval("seconds_per_batch_mean"))
        panel.set_xticks(range(len(of_kind)), of_kind, fontsize=8)
        panel.set_ylabel("seconds per batch (mean, 95 % interval)")
        shown = [row for methods in of_kind.values() for row in methods.values()]
        panel.set_ylim(0, room(row.interval("seconds_per_batch_mean") for row in shown))
        panel.set_title(titled(shown), fontsize=9)
        finish_axes(panel)
    present = {row.method for methods in found.values() for row in methods.values()}
    legend(drawn, [name for name in METHODS if name in present])
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    return drawn
