"""Time per prompt where the dataset is known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ... import paper
from ...records.groups import in_turns
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, fixed, make_table
from ..claims import decided, differences, not_run
from ..plots import STYLE, finish_axes, titled
from ..section import Claim
from ..select import BASE, DATASETS, ORDERED, PACKED, WHOLE, clean, one_kind, published_as
from ..words import model_name
from ..words import notes as notes_of

PLACE = 4
TITLE = "Packing or sorting the whole dataset (figure of prefill time per prompt)"
LEAD = (
    "Milliseconds per prompt of four methods. Dataset-prepacking (packing timed) and length-ordered (*) need all "
    "prompts in advance."
)
LEAST = 0.02  # a time counts as the least if it is at most this share above the least
METHODS = (PACKED, WHOLE, BASE, ORDERED)
COLUMNS = (
    Column("Dataset"), Column("Model"), Column("Batch"), *(Column(f"{name} (ms)", fixed(2)) for name in METHODS),
    *(Column(f"Paper: {name} (ms)", fixed(2)) for name in METHODS),
)  # fmt: skip
Found = dict[tuple[Any, ...], dict[str, Row]]  # by model, bits, dataset, batch size and number of prompts


def select(records: Sequence[Record]) -> Found:
    """The comparisons that dataset-prepacking is in."""
    rows = one_kind(clean(records, dataset=DATASETS, metric="prefill"))
    kinds = in_turns(rows, "model", "loadbit", "dataset", "batch_size", "num_prompts")
    return {key: methods for key, methods in kinds.items() if WHOLE in methods}


def table(found: Found) -> Table:
    """A row for each dataset and batch size."""
    body, runs = [], []
    for key, methods in sorted(found.items(), key=lambda item: (str(item[0][:2]), item[0][3], str(item[0][2]))):
        model, _, dataset, size, _ = key
        asked = {"model": published_as(model), "dataset": dataset, "batch_size": size}
        line: dict[str, Any] = {"Dataset": dataset, "Model": model_name(methods[WHOLE]), "Batch": size}
        for name in METHODS:
            line[f"{name} (ms)"] = _milliseconds(methods.get(name))
            theirs = paper.find("dataset_level_prefill_per_prompt", "prefill_s_per_prompt", method=name, **asked)
            line[f"Paper: {name} (ms)"] = None if theirs is None else 1000 * theirs
        body.append(line)
        runs.append([row.run_id for row in methods.values()])
    return make_table(COLUMNS, body, runs)


def _milliseconds(row: Row | None) -> float | str | None:
    if row is None or row.seconds_per_prompt_mean is None:
        return row.status if row else None
    return 1000 * row.seconds_per_prompt_mean


def notes(found: Found) -> list[str]:
    """What failed."""
    return notes_of([row for methods in found.values() for row in methods.values() if row.status != "ok"])


def claims(found: Found) -> list[Claim]:
    """Whether packing the whole dataset is cheapest."""
    text = f"Packing the whole dataset takes least time per prompt at every batch size (within {100 * LEAST:.0f} %)"
    complete = [
        methods for methods in found.values()
        if set(METHODS) <= methods.keys() and all(row.status == "ok" for row in methods.values())
    ]  # fmt: skip
    if not complete:
        return [not_run(text, "on mmlu and alpaca")]

    def cost(row: Row) -> float:
        return row.seconds_per_prompt_mean or np.inf

    first = sum(
        cost(methods[WHOLE]) <= (1 + LEAST) * min(cost(methods[name]) for name in (PACKED, BASE, ORDERED))
        for methods in complete
    )
    why = differences(complete[0][WHOLE]) + "; packing is timed here"
    ours = f"{first} of {len(complete)} batch sizes"
    return [decided(text, "on mmlu and alpaca", ours, first == len(complete), why)]


def figure(found: Found) -> Any:
    """A curve for each method over batch sizes, the paper's beside ours."""
    model, _, dataset = next(iter(found))[:3]
    here = {key: methods for key, methods in found.items() if key[0] == model and key[2] == dataset}
    if not any(row.seconds_per_prompt_mean for methods in here.values() for row in methods.values()):
        return None
    drawn, (ours, theirs) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for name, marker in zip(METHODS, "osD^", strict=True):
        style: dict[str, Any] = {"marker": marker, "color": STYLE[name]["color"], "label": name, "linewidth": 1.4}
        points = sorted(
            (key[3], 1000 * (methods[name].seconds_per_prompt_mean or 0.0)) for key, methods in here.items()
            if name in methods and methods[name].seconds_per_prompt_mean
        )  # fmt: skip
        ours.plot([x for x, _ in points], [y for _, y in points], **style)
        known = [(int(row["batch_size"]), 1000 * float(row["prefill_s_per_prompt"]))
                 for row in paper.table("dataset_level_prefill_per_prompt")
                 if (row["model"], row["dataset"], row["method"]) == ("llama2-1.3b", dataset, name)]  # fmt: skip
        theirs.plot([x for x, _ in known], [y for _, y in known], linestyle="--", **style)
    shown = [row for methods in here.values() for row in methods.values()]
    titles = (f"here: {titled(shown)}", f"paper: Llama2-1.3B, {dataset}")
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
