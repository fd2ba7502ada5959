"""Plain prefill of k equal prompts of m tokens: when is a larger batch free?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ... import paper, stats
from ...interval import FEW, Interval
from ...records.row import Row
from ...records.store import Record
from ..cells import Column, Table, estimate, fixed, make_table, times
from ..claims import against, close, decided, not_run, unlike
from ..comparison import per_batch
from ..plots import COLORS, finish_axes, titled
from ..section import CANNOT_TELL, FAILS, Claim
from ..select import BASE, DATASETS, clean, one_kind, over
from ..words import model_name

PLACE = 5
TITLE = "When is a larger batch free? (figure of prefill time over batch size)"
LEAD = (
    "A plain prefill of k prompts of m tokens each. While the device is not busy, more prompts cost hardly more; once "
    "it is, time grows with the tokens."
)
RUNS = 1.1  # by how much the ratio of two processes may be off, besides what repeats within them tell
PUBLISHED = "prefill_by_batch_size_and_length"
PACE = (
    "the authors' figures disagree by a factor of two: Llama2-1.3B runs at 15 to 17 TFLOP/s in their figure of times "
    "by dataset, and at 31 to 42 in this one, in their README and in their dataset-level figure (docs/authors-code.md)"
)
COLUMNS = (
    Column("Model"), Column("Tokens m"), Column("Prompts k"), Column("Seconds", fixed(3)),
    Column("Over k = 1 (of two runs)", estimate()), Column("Paper: seconds", fixed(3)),
    Column("Paper: over k = 1", fixed(2)),
)  # fmt: skip
Found = list[Row]


def select(records: Sequence[Record]) -> Found:
    """The runs of equal prompts, in the order of the table."""
    rows = [row for row in one_kind(clean(records, dataset="equal", method=BASE)) if row.longest_prompt_tokens]
    return sorted(rows, key=lambda row: (row.model, row.longest_prompt_tokens or 0, row.batch_size))


def table(found: Found) -> Table:
    """A row for each length and number of prompts."""
    body = []
    for row in found:
        m, k = row.longest_prompt_tokens, row.batch_size
        theirs, alone = (paper.find(PUBLISHED, "prefill_s", prompt_length=m, batch_size=size) for size in (k, 1))
        body.append({
            "Model": model_name(row), "Tokens m": m, "Prompts k": k, "Seconds": per_batch(row),
            "Over k = 1 (of two runs)": 1.0 if k == 1 else _over_alone(row, found), "Paper: seconds": theirs,
            "Paper: over k = 1": over(theirs, alone),
        })  # fmt: skip
    return make_table(COLUMNS, body, [[row.run_id] for row in found])


def _over_alone(row: Row, found: Found) -> stats.Interval | None:
    """A batch's time over that of one prompt: two runs, whose means are taken for independent.

    Of equal prompts every batch is the same, so that only repeats are draws, and it is they that may be few.
    """
    kind = (row.model_hash, row.longest_prompt_tokens)
    same = [each for each in found if each.batch_size == 1 and (each.model_hash, each.longest_prompt_tokens) == kind]
    ours, alone = row.interval("seconds_per_batch_mean"), same[-1].interval("seconds_per_batch_mean") if same else None
    if ours is None or alone is None:
        return None
    return replace(stats.ratio_of_intervals(ours, alone), few=min(row.repeats, same[-1].repeats) < FEW)


def notes(found: Found) -> list[str]:
    """Where the paper's own figures contradict each other."""
    return [PACE]


def claims(found: Found) -> list[Claim]:
    """Whether four prompts of about 100 tokens cost less than twice what one does, as on the authors' GPU (1.42)."""
    text = "A small batch is nearly free: four prompts of 100 tokens take less than twice the time of one"
    rule = (
        f"the 95 % interval of their ratio lies below {2 / RUNS:.2g}, as two runs may differ by "
        f"{100 * (RUNS - 1):.0f} % besides; it does not if it lies above {2 * RUNS:.2g}"
    )
    one, four = (paper.find(PUBLISHED, "prefill_s", prompt_length=100, batch_size=k) for k in (1, 4))
    theirs = over(four, one)
    published = f"{theirs:.2f}x"
    for row in found:
        ratio = _over_alone(row, found)
        if (row.longest_prompt_tokens, row.batch_size) == (100, 4) and ratio:
            low, high = ratio.low / RUNS, ratio.high * RUNS
            inverse = Interval(1 / ratio.value, 1 / high, 1 / low, ratio.few, ratio.invalid)
            verdict, _ = against([inverse], 0.5)
            busy = f"one prompt keeps the device busy already: {row.device_name}"
            why = {FAILS: busy, CANNOT_TELL: "it is too near to 2, or rests on too few repeats"}.get(verdict, "")
            apart = unlike(row, None, None)
            return [decided(text, rule, (verdict, why), times(ratio), published, apart, close(ratio, theirs))]
    return [not_run(text, rule, published)]


def figure(found: Found) -> Any:
    """Seconds over the number of prompts, a line for each length, the paper's beside ours."""
    drawn, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    published = [(int(line["prompt_length"]), int(line["batch_size"]), float(line["prefill_s"]))
                 for line in paper.table(PUBLISHED)]  # fmt: skip
    rows = [row for row in found if row.model_hash == found[0].model_hash]
    measured = [(row.longest_prompt_tokens or 0, row.batch_size, row.seconds_per_batch_mean or np.nan) for row in rows]
    titles = (f"here: {titled(rows)}", f"paper: Llama2-1.3B, {paper.GPU}")
    for panel, points, title in zip(panels, (measured, published), titles, strict=True):
        for number, (marker, m) in enumerate(zip("osD^vP", sorted({m for m, *_ in points}), strict=False)):
            line = sorted((k, s) for length, k, s in points if length == m)
            shade = COLORS[DATASETS[number]]
            panel.plot([k for k, _ in line], [s for _, s in line], marker=marker, color=shade, label=f"{m} tokens")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("prompts in the batch")
        panel.set_ylabel("seconds")
        panel.set_title(title, fontsize=9)
        panel.legend(frameon=False, fontsize=8)
        finish_axes(panel)
    return drawn
