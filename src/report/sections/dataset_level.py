"""Time per prompt where the dataset is known in advance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt

from ... import paper, stats
from ...interval import Interval
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Spread, Table, fixed, make_table, spread
from ..claims import against, decided, not_run, unlike
from ..comparison import per_prompt_spread
from ..plots import STYLE, finish_axes, titled
from ..section import CANNOT_TELL, HOLDS, Claim
from ..select import BASE, DATASETS, ORDERED, PACKED, WHOLE, clean, one_kind, published_as
from ..words import MODELS, model_name
from ..words import notes as notes_of

PLACE = 4
TITLE = "Packing or sorting the whole dataset (figure of prefill time per prompt)"
LEAD = (
    "Milliseconds per prompt of four methods, with their standard deviation over repeats. Dataset-prepacking (packing "
    "timed) and length-ordered (*) need all prompts in advance."
)
LEAST = 0.05  # a time counts as the least if it is at most this share above the least
CLAIMED = ("mmlu", "alpaca")  # the datasets on which the paper's own figures have it so
CONTRADICTED = (
    "on rlhf the authors' figures have prepacking ahead of dataset-prepacking by 4 % in batches of 16 and by 9 % in "
    "batches of 32 (Llama2-1.3B), so the claim is about mmlu and alpaca"
)
METHODS = (PACKED, WHOLE, BASE, ORDERED)
BITS = "8"  # of the authors' command
COLUMNS = (
    Column("Dataset"), Column("Model"), Column("Batch"), *(Column(f"{name} (ms)", spread(2)) for name in METHODS),
    *(Column(f"Paper: {name} (ms)", fixed(2)) for name in METHODS),
)  # fmt: skip
Found = dict[tuple[Any, ...], dict[str, Record]]  # by model, bits, dataset, batch size and number of prompts


def select(records: Sequence[Record]) -> Found:
    """The comparisons that dataset-prepacking is in."""
    rows = one_kind(clean(records, dataset=DATASETS, metric="prefill"))
    kinds = in_turns(rows, "model", "loadbit", "dataset", "batch_size", "num_prompts")
    by_run = {record.row.run_id: record for record in records}
    return {
        key: {name: by_run[row.run_id] for name, row in methods.items()}
        for key, methods in kinds.items() if WHOLE in methods
    }  # fmt: skip


def _rows(found: Found) -> list[Row]:
    return [record.row for methods in found.values() for record in methods.values()]


def table(found: Found) -> Table:
    """A row for each dataset and batch size."""
    body, runs = [], []
    for key, methods in sorted(found.items(), key=lambda item: (str(item[0][:2]), item[0][3], str(item[0][2]))):
        model, bits, dataset, size, _ = key
        asked = {"model": published_as(model, bits, BITS), "dataset": dataset, "batch_size": size}
        line: dict[str, Any] = {"Dataset": dataset, "Model": model_name(methods[WHOLE].row), "Batch": size}
        for name in METHODS:
            line[f"{name} (ms)"] = _milliseconds(methods[name].row) if name in methods else None
            theirs = paper.find("dataset_level_prefill_per_prompt", "prefill_s_per_prompt", method=name, **asked)
            line[f"Paper: {name} (ms)"] = None if theirs is None else 1000 * theirs
        body.append(line)
        runs.append([record.row.run_id for record in methods.values()])
    return make_table(COLUMNS, body, runs)


def _milliseconds(row: Row) -> Spread | str:
    seconds = per_prompt_spread(row)
    return Spread(1000 * seconds.mean, 1000 * seconds.std) if seconds else row.status


def notes(found: Found) -> list[str]:
    """What failed, and where the paper's own figures contradict its claim."""
    return [*notes_of([row for row in _rows(found) if row.status != "ok"]), CONTRADICTED]


def claims(found: Found) -> list[Claim]:
    """Whether packing the whole dataset is cheapest."""
    text = "Packing the whole dataset in advance takes least time per prompt, or within 5 % of it, at every batch size"
    rule = (
        f"against each other method the interval of its speedup over repeats lies above {1 - LEAST:g}, as within "
        f"{100 * LEAST:.0f} % it counts as least; it does not if any lies below"
    )
    published = "on mmlu and alpaca"
    claimed = {key: methods for key, methods in found.items() if key[2] in CLAIMED and set(METHODS) <= methods.keys()}
    if not claimed:
        return [not_run(text, rule, published)]
    others = (PACKED, BASE, ORDERED)
    speedups = {key: [_speedup(methods[WHOLE], methods[name]) for name in others] for key, methods in claimed.items()}
    verdict = against([each for beside in speedups.values() for each in beside], 1 - LEAST)
    first = sum(all(each and each.value >= 1 - LEAST for each in beside) for beside in speedups.values())
    if missing := sorted({*CLAIMED} - {key[2] for key in claimed}):
        verdict = (CANNOT_TELL, f"not run on {', '.join(missing)}") if verdict[0] == HOLDS else verdict
    ours = f"in {first} of {len(claimed)} comparisons by dataset and batch size, packing timed"
    apart = unlike(next(iter(claimed.values()))[WHOLE].row, loadbit=BITS, models=("llama2-1.3b", "mistral-7b"))
    return [decided(text, rule, verdict, ours, published, apart)]


def _speedup(whole: Record, other: Record) -> Interval | None:
    """Another method's time over that of packing the dataset, same prompts; their batches are not the same."""
    if whole.row.status != "ok" or other.row.status != "ok":
        return None
    ours, theirs = whole.whole_seconds(), other.whole_seconds()
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    found = stats.speedup_interval(theirs, ours, same_batches=False)
    return replace(found, invalid=whole.row.doubted or other.row.doubted)


def figure(found: Found) -> Any:
    """A curve for each method over batch sizes, the paper's beside ours."""
    sizes = Counter(key[:3] for key in found)
    of_paper = {key: published_as(key[0], key[1], BITS) for key in sizes}
    chosen = max(sizes, key=lambda key: (sizes[key], bool(of_paper[key]), key[2] == CLAIMED[0]))
    dataset, their_model = chosen[2], of_paper[chosen] or "llama2-1.3b"
    here = {key: methods for key, methods in found.items() if key[:3] == chosen}
    shown = _rows(here)
    if not any(row.seconds_per_prompt_mean for row in shown):
        return None
    drawn, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for name, marker in zip(METHODS, "osD^", strict=True):
        style: dict[str, Any] = {"marker": marker, "color": STYLE[name]["color"], "label": name, "linewidth": 1.4}
        points = sorted(
            (key[3], 1000 * (methods[name].row.seconds_per_prompt_mean or 0.0)) for key, methods in here.items()
            if name in methods and methods[name].row.seconds_per_prompt_mean
        )  # fmt: skip
        ours.plot([x for x, _ in points], [y for _, y in points], **style)
        known = [(int(row["batch_size"]), 1000 * float(row["prefill_s_per_prompt"]))
                 for row in paper.table("dataset_level_prefill_per_prompt")
                 if (row["model"], row["dataset"], row["method"]) == (their_model, dataset, name)]  # fmt: skip
        theirs.plot([x for x, _ in known], [y for _, y in known], linestyle="--", **style)
    titles = (f"here: {titled(shown)}", f"paper: {MODELS[their_model]}, {dataset}")
    for panel, name in zip((ours, theirs), titles, strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xticks((8, 16, 32), ("8", "16", "32"))
        panel.set_ylim(bottom=0)
        panel.set_xlabel("batch size (prompts; dataset-prepacking: bins)")
        panel.set_ylabel("ms per prompt")
        panel.set_title(name, fontsize=9)
        finish_axes(panel)
    ours.legend(frameon=False, fontsize=8)
    return drawn
