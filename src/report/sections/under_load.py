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
from ..cells import Column, Marked, Table, estimate, fixed, make_table, significant, times
from ..plots import STYLE, finish_axes, titled
from ..rates import FIRST, Curves, Found, Name
from ..section import Claim
from ..select import BASE
from ..waiting import interval
from ..words import label, model_name, validity

PLACE = 12
TITLE = "Under load: the largest rate that keeps first tokens in time"
LEAD = (
    "Prompts arrive one by one and wait while the device is busy; a policy forms the batches. Each rate is a run of "
    "its own. The largest rate is the last at which 99 of 100 first tokens come within the objective and the queue "
    "does not grow. Of several seeds, each of which has arrivals and prompts of its own, it is the mean with a t "
    "interval over seeds; of one it reaches from the last rate whose p99 interval keeps the objective to the first "
    "whose does not, and few prompts make that too narrow."
)
TAKES = ("under_load", None)
COLUMNS = (
    Column("Method"), Column("Policy"), Column("Clock"), Column("Dataset"), Column("Model"), Column("Arrivals"),
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
        for (_, policy, clock), curve in curves.items():
            first, there = curve.rows[0], curve.best
            base = _base(curves, clock)
            line: dict[str, Any] = {
                "Method": label(first), "Policy": policy, "Clock": clock, "Dataset": first.dataset,
                "Model": model_name(first), "Arrivals": first.arrivals, "Batch": first.batch_size,
                "SLO (ms)": first.slo_ms, "Seeds": len(curve.of_seed),
                "Largest rate (prompts / s)": "no objective" if first.slo_ms is None else _or_more(curve),
            }  # fmt: skip
            if base is not None:
                line["Over full-batching, fifo"] = 1.0 if curve is base else curve.over(base)
            if there:
                line |= {
                    "p99 there (s)": _p99(there), "Queue there, mean (s)": _mean(there, "queue_mean_s"),
                    "Prompts / batch": _mean(there, "prompts_per_batch_mean"),
                    "Computed / useful": _mean(there, "padding_ratio"), "Busy (%)": _mean(there, "busy_share", 100),
                }  # fmt: skip
            body.append(line)
            ids.append([row.run_id for row in curve.rows])
    return make_table(COLUMNS, body, ids)


def _base(curves: dict[Name, Curves], clock: str) -> Curves | None:
    """Full-batching by fifo under the same clock, else under the virtual one."""
    return curves.get((BASE, FIRST, clock), curves.get((BASE, FIRST, "virtual")))


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
    tried = f"{len(rows)} runs of {max(row.num_prompts for row in rows):,} prompts"
    across = any((BASE, FIRST, "virtual") in curves and (BASE, FIRST, clock) not in curves
                 for curves in found for _, _, clock in curves)  # fmt: skip
    mixed = ["what ran in real time is put over full-batching in virtual time"] if across else []
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
        for (method, _, clock), each in own.items():
            _draw(panel, each, method, clock)
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


def _draw(panel: Any, curves: Curves, method: str, clock: str) -> None:
    """A curve for each seed; of one its intervals, too. The largest rate is an upright line."""
    real, color, alone = clock == "real", STYLE[method]["color"], len(curves.of_seed) == 1
    name = f"{method}, real time" if real else method
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
