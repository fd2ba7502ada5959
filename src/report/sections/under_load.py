"""Under load: how long first tokens take at each rate of arrivals, and the largest rate that keeps an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ...interval import Interval
from ...prefilling.methods import method_of
from ...records.row import Row
from ...records.store import Record
from .. import rates
from ..cells import Column, Marked, Table, estimate, fixed, make_table, significant, thousands, times
from ..plots import STYLE, finish_axes, titled
from ..rates import FIRST, Curves, Found, Name
from ..section import Claim
from ..select import BASE
from ..waiting import interval
from ..words import label, model_name, validity

SEEDS = True  # a line has the largest rate of each seed, and INVALID runs decide nothing
PLACE = 14
TITLE = "Under load: the largest rate that keeps first tokens in time"
LEAD = (
    "Prompts arrive one by one and wait while the device is busy; a policy forms the batches. Each rate is a run of "
    "its own. The largest rate is the last at which 99 of 100 first tokens come within the objective and the queue "
    "does not grow. Each seed has arrivals and prompts of its own. Of several, the largest rate is their geometric "
    "mean with a t interval over seeds. Of one, its interval reaches from the last rate at which the whole interval of "
    "p99 is within the objective to the first at which all of it is beyond, which is too narrow where prompts are few."
)
TAKES = ("under_load", None)
COLUMNS = (
    Column("Method"), Column("Policy"), Column("Clock"), Column("Dataset"), Column("Prompts", thousands),
    Column("Model, type"), Column("Arrivals"),
    Column("Batch"), Column("SLO (ms)", significant), Column("Seeds"),
    Column("Largest rate (prompts / s)", estimate(), "none"), Column("Over full-batching, fifo", times),
    Column("p99 there (s)", estimate()),
    Column("Queue there, mean (s)", significant), Column("Prompts / batch", fixed(1)),
    Column("Computed / useful", fixed(2)), Column("Busy (%)", fixed(0)),
)  # fmt: skip


def select(records: Sequence[Record]) -> Found:
    """The curves of each setting."""
    return rates.curves(records)


def table(found: Found) -> Table:
    """A row for each method and policy."""
    body, ids = [], []
    for curves in found:
        for (_, policy, clock, way), curve in curves.items():
            first, there = curve.rows[0], curve.best
            base = _base(curves, clock, way)
            line: dict[str, Any] = {
                "Method": f"{label(first)} ({way})" if way else label(first), "Policy": policy, "Clock": clock,
                "Dataset": first.dataset, "Prompts": first.num_prompts,
                "Model, type": f"{model_name(first)}, {first.dtype}", "Arrivals": first.arrivals,
                "Batch": first.batch_size, "SLO (ms)": first.slo_ms, "Seeds": _seeds(curve),
                "Largest rate (prompts / s)": "no objective" if first.slo_ms is None else _or_more(curve),
            }  # fmt: skip
            if base is not None:
                line["Over full-batching, fifo"] = 1.0 if curve is base else _over(curve, base)
            if there:
                line |= {
                    "p99 there (s)": _p99(there), "Queue there, mean (s)": _mean(there, "queue_mean_s"),
                    "Prompts / batch": _mean(there, "prompts_per_batch_mean"),
                    "Computed / useful": _mean(there, "padding_ratio"), "Busy (%)": _mean(there, "busy_share", 100),
                }  # fmt: skip
            body.append(line)
            ids.append([row.run_id for row in curve.rows])
    return make_table(COLUMNS, body, ids)


def _base(curves: dict[Name, Curves], clock: str, way: str) -> Curves | None:
    """Full-batching by fifo, measured in the same way under the same clock, or the nearest to that which there is."""
    candidates = [(BASE, FIRST, at, how) for at in (clock, "virtual", "real") for how in (way, "")]
    return next((curves[name] for name in candidates if name in curves), None)


def _seeds(curves: Curves) -> str:
    """How many seeds a line is of, and of how many that were tried."""
    found, tried = len(curves.found), len(curves.of_seed)
    return str(tried) if found in (0, tried) else f"{found} of {tried}"


def _over(curves: Curves, base: Curves) -> Interval | Marked | None:
    """A rate over full-batching's; marked where either is only the least that can be said, or where seeds are fewer."""
    ratio = curves.over(base)
    if ratio is None or not (curves.bounded or base.bounded):
        return None
    if not curves.bounded or not base.bounded:
        return Marked(ratio.value, "or more" if base.bounded else "or less")
    fewer = len(shared := curves.shared(base)) < len(curves.found)
    return Marked(ratio, f"({len(shared)} seeds)" if len(shared) > 1 else "(1 seed)") if fewer else ratio


def _mean(rows: Sequence[Row], column: str, times: float = 1.0) -> float | None:
    """The mean of a column over seeds; None where a run has nothing in it."""
    found = [getattr(row, column) for row in rows]
    return None if None in found else times * float(np.mean(found))


def _p99(rows: Sequence[Row]) -> Interval | float | None:
    first = rows[0]
    if len(rows) > 1:
        return _mean(rows, "ttft_p99_s")
    return interval(first.ttft_p99_s, first.ttft_p99_low_s, first.ttft_p99_high_s)


def _or_more(curves: Curves) -> Interval | Marked | None:
    """A rate as it is shown; with no rate above it that broke the objective, it is the least that can be said."""
    rate = curves.rate
    return rate if rate is None or curves.bounded else Marked(rate.value, "or more")


def claims(found: Found) -> list[Claim]:
    """The paper measures no arrivals."""
    return []


def notes(found: Found) -> list[str]:
    """How many runs, and which of them are not to be relied upon."""
    rows = [row for curves in found for curve in curves.values() for row in curve.rows]
    prompts = sorted({row.num_prompts for row in rows})
    tried = f"{len(rows)} runs of {' or '.join(f'{number:,}' for number in prompts)} prompts"
    across = any((base := _base(curves, name[2], name[3])) and base.rows[0].clock != name[2]
                 for curves in found for name in curves)  # fmt: skip
    mixed = ["some ratios are over full-batching under the other clock, as it was not measured under theirs"] * across
    few = "where a run has fewer than 10 busy periods, which leaves no interval, its p99 itself counts"
    invalid = sum(row.valid is False for row in rows)
    doubts = [f"{invalid} of the runs are INVALID"] if invalid else []
    return [tried, few, *mixed, *doubts, *(line for line in validity(rows) if line.startswith("INVALID"))]


def figure(found: Found) -> Any:
    """The 99th percentile over the rate: a panel for each setting and policy, a curve for each method.

    What ran in real time is dashed; engines with a queue of their own stand in the first panel of their setting.
    """
    panels = []
    for curves in found:
        policies = dict.fromkeys(name[1] for name in curves if not method_of(name[0]).serves)
        for place, policy in enumerate(policies or {"": None}):
            of_engines = place == 0
            own = {name: each for name, each in curves.items()
                   if name[1] == policy or (of_engines and method_of(name[0]).serves)}  # fmt: skip
            panels.append((policy, own))
    drawn, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for panel, (policy, own) in zip(axes[0], panels, strict=True):
        for (method, _, clock, way), each in own.items():
            _draw(panel, each, method, clock, way)
        first = next(iter(own.values())).rows[0]
        if first.slo_ms is not None:
            panel.axhline(first.slo_ms, color="black", lw=0.8, ls="--")
            panel.annotate(f"objective {first.slo_ms:g} ms", (0.01, first.slo_ms),
                           xycoords=("axes fraction", "data"), va="bottom", fontsize=7)  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("prompts a second that arrive")
        panel.set_title(f"{policy}\n{titled([row for each in own.values() for row in each.rows])}", fontsize=8)
        panel.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncol=2)
        finish_axes(panel)
    axes[0][0].set_ylabel("time to first token, 99th percentile (ms)")
    return drawn


def _draw(panel: Any, curves: Curves, method: str, clock: str, way: str) -> None:
    """A curve for each seed; of one its intervals, too. The largest rate is an upright line."""
    real, color, alone = clock == "real", STYLE[method]["color"], len(curves.of_seed) == 1
    name = ", ".join(filter(None, [method, way, "real time" if real else ""]))
    for number, curve in enumerate(curves.of_seed.values()):
        at, p99 = [row.rate for row in curve.rows], [1000 * (row.ttft_p99_s or 0.0) for row in curve.rows]
        panel.plot(at, p99, marker="s" if real else "o", ls="--" if real else "-", color=color,
                   markersize=3.5 if alone else 2, lw=1.5 if alone else 0.7,
                   label=None if number else name)  # fmt: skip
    for row in curves.rows:
        if alone and row.ttft_p99_low_s is not None and row.ttft_p99_high_s is not None:
            panel.plot([row.rate] * 2, [1000 * row.ttft_p99_low_s, 1000 * row.ttft_p99_high_s], color=color, lw=0.8)
    if curves.rate is not None:
        panel.axvline(curves.rate.value, color=color, lw=0.8, ls=":")
