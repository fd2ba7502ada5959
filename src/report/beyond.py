"""Sections on what the paper only touches: generation from the cache, scale, and the faults of its measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from src.measure.records import Record
from src.measure.row import Row
from src.report.aggregate import place_of
from src.report.faults import faults_rows
from src.report.plots import STYLE, finish_axes, titled, whisker
from src.report.section import Section, Table
from src.report.select import PACKED, clean, decided, not_run, seconds
from src.report.tables import label, model_name, notes, number


def generation(records: Sequence[Record]) -> Section:
    """Continuations from each method's cache, against ordinary generation."""
    section = Section(
        "generation", "Generation from the packed cache",
        "Greedy continuations from each method's cache, token for token against ordinary generation from each prompt "
        "alone. A difference counts unless the model is undecided between the two tokens.",
    )  # fmt: skip
    rows = [row for row in clean(records) if row.generated_tokens]
    rows.sort(key=lambda row: (row.protocol, place_of(row.method)))
    text = "Generation goes on from the packed cache as from an ordinary one"
    section.table = Table(
        ("Method", "Protocol", "Model", "Prompts", "Tokens compared", "Equal (%)", "Near-ties",
         "Largest KV difference"),
        [[label(row), row.protocol, model_name(row), str(row.verified_prompts), str(row.generated_tokens),
          number(row.generated_equal_pct, 0), str(row.verified_near_ties), f"{row.verified_max_rel_diff or 0:.1e}"]
         for row in rows],
        [[row.run_id] for row in rows],
    )  # fmt: skip
    section.notes = notes([row for row in rows if row.status != "ok"])
    packed = [row for row in rows if row.method == PACKED]
    if not packed:
        section.claims.append(not_run(text, "equal"))
        return section
    holds = all(row.status == "ok" and row.generated_equal_pct == 100 for row in packed)
    compared = sum(row.generated_tokens or 0 for row in packed)
    section.claims.append(
        decided(text, "equal", f"{compared:,} tokens compared, {'all equal' if holds else 'not all equal'}", holds,
                "see the table")
    )  # fmt: skip
    return section


def scaling(records: Sequence[Record]) -> Section:
    """Time against useful tokens, and memory, as batches grow to a thousand prompts, and prompts to many tokens."""
    section = Section(
        "scaling", "Time against useful tokens",
        "One batch each, of short prompts (mmlu) or long ones (azure-conv). Without padding, time is close to a "
        "straight line in useful tokens, but for attention, which grows with the square of a prompt's length.",
    )  # fmt: skip
    rows = clean(records, protocol="modern", metric="prefill", method=(PACKED, "padding-free"))
    rows = [row for row in rows if row.num_prompts == row.batch_size]
    beside = {row.comparison_id for row in rows if row.method == "padding-free"}
    rows = [row for row in rows if row.comparison_id in beside]
    rows = sorted(rows, key=lambda row: (row.model, row.dataset, place_of(row.method), row.useful_tokens or 0))
    section.table = Table(
        ("Method", "Dataset", "Model", "Prompts", "Longest (tokens)", "Useful tokens", "Seconds", "µs per useful token",
         "Peak memory (MB)", "Must hold (MB)", "Over that (%)"),
        [[label(row), row.dataset, model_name(row), str(row.batch_size), str(row.longest_prompt_tokens),
          f"{row.useful_tokens or 0:,}", seconds(row),
          "" if not row.useful_tokens_per_s else f"{1e6 / row.useful_tokens_per_s:.0f}", number(row.peak_memory_mb, 0),
          number(row.must_hold_mb, 0), "" if row.memory_overhead_pct is None else f"{row.memory_overhead_pct:+.0f}"]
         for row in rows],
        [[row.run_id] for row in rows],
    )  # fmt: skip
    section.notes = notes([row for row in rows if row.status != "ok"])
    drawn = [row for row in rows if row.status == "ok"]
    if not drawn:
        section.notes = ["not run: nothing was recorded for it"]
        return section
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (dataset, method), line in _lines(drawn).items():
        style: dict[str, Any] = {
            "color": STYLE[method]["color"], "marker": "o" if dataset == "mmlu" else "s",
            "linestyle": "-" if dataset == "mmlu" else "--", "label": f"{method}, {dataset}", "markersize": 4,
        }  # fmt: skip
        tokens = [row.useful_tokens or 0 for row in line]
        panels[0].plot(tokens, [row.seconds_per_batch_mean for row in line], **style)
        for row in line:
            whisker(panels[0], row.useful_tokens or 0, row.seconds_per_batch_mean or np.nan,
                    row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high, color=style["color"])  # fmt: skip
        panels[1].plot(tokens, [row.peak_memory_mb or np.nan for row in line], **style)
    for panel, name in zip(panels, ("seconds per batch (95 % interval)", "peak memory (MB)"), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("useful tokens in the batch")
        panel.set_ylabel(name)
        finish_axes(panel)
    panels[0].legend(frameon=False, fontsize=7)
    figure.suptitle(titled(row for row in drawn if row.model_hash == drawn[0].model_hash), fontsize=9)
    section.figure = figure
    return section


def _lines(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.model_hash == rows[0].model_hash:
            found.setdefault((row.dataset, row.method), []).append(row)
    return found


def faults(records: Sequence[Record]) -> Section:
    """What each measuring fault of the authors' code is worth."""
    section = Section(
        "faults", "What each measuring fault of the authors' code is worth",
        "The same comparison with one fault of the published measuring code turned on, as multiples of the clean one. "
        "Each is a run of its own, so that these are ratios of two runs, which differ by some percent anyway.",
    )  # fmt: skip
    header, body, sources = faults_rows(records)
    section.table = Table(header, body, sources)
    if not body:
        section.notes = ["not run: nothing was recorded for it"]
    return section
