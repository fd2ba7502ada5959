"""Under load: how long first tokens take at each rate of arrivals, and the largest rate that keeps an objective."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from ...interval import Interval
from ...records.groups import place_of
from ...records.row import MACHINE, WORK, Row, key
from ...records.store import Record
from ..cells import Column, Table, estimate, fixed, make_table, significant, times
from ..plots import STYLE, finish_axes, titled
from ..section import Claim
from ..select import BASE, clean
from ..waiting import interval
from ..words import label, model_name, validity

PLACE = 12
TITLE = "Under load: the largest rate that keeps first tokens in time"
LEAD = (
    "Prompts arrive one by one and wait while the device is busy; a policy forms the batches. Each rate is a run of "
    "its own. The largest rate is the last at which 99 of 100 first tokens come within the objective and the queue "
    "does not grow. It lies between the last that surely keeps it and the first that surely does not, by the intervals "
    "of p99."
)
FIRST = "fifo"
COLUMNS = (
    Column("Method"), Column("Policy"), Column("Dataset"), Column("Model"), Column("Arrivals"), Column("Batch"),
    Column("SLO (ms)", significant), Column("Largest rate (prompts / s)", estimate(), "none"),
    Column("Over full-batching, fifo", times), Column("p99 there (s)", estimate()),
    Column("Queue there, mean (s)", significant), Column("Prompts / batch", fixed(1)),
    Column("Computed / useful", fixed(2)), Column("Busy (%)", fixed(0)),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One method and policy at several rates, ascending."""

    rows: list[Row]

    @property
    def best(self) -> Row | None:
        """The run at the largest rate that keeps the objective, if every lower one that was tried does, too."""
        kept = None
        for row in self.rows:
            if not _keeps(row, row.ttft_p99_s):
                break
            kept = row
        return kept

    @property
    def rate(self) -> Interval | None:
        """The largest rate, from the last that surely keeps the objective to the first that surely breaks it."""
        if self.best is None or self.best.rate is None:
            return None
        surely = [row.rate for row in self.rows if row.rate and _keeps(row, row.ttft_p99_high_s or row.ttft_p99_s)]
        broken = [row.rate for row in self.rows if row.rate and not _keeps(row, row.ttft_p99_low_s or row.ttft_p99_s)]
        rate = self.best.rate
        low = max((each for each in surely if each <= rate), default=float("nan"))
        return Interval(rate, low, min((each for each in broken if each > rate), default=float("nan")))


def _keeps(row: Row, p99_s: float | None) -> bool:
    return bool(row.stable) and p99_s is not None and row.slo_ms is not None and 1000 * p99_s <= row.slo_ms


Found = list[dict[tuple[str, str], Curve]]  # of each setting the curves, by method and policy


def select(records: Sequence[Record]) -> Found:
    """The curves of each setting: what is equal in everything but method, policy and rate."""
    settings: dict[tuple[Any, ...], dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in clean(records, status="ok"):
        if row.arrivals is not None and row.slo_ms is not None:
            same = (row.dataset, row.model, *key(row, WORK, MACHINE, but=("rate", "workload_fingerprint")))
            settings[same][row.method, row.policy or ""].append(row)
    found = []
    for _, curves in sorted(settings.items(), key=str):
        ordered = sorted(curves.items(), key=lambda each: (place_of(each[0][0]), each[0][1] != FIRST, each[0][1]))
        found.append({name: Curve(sorted(rows, key=lambda row: row.rate or 0.0)) for name, rows in ordered})
    return found


def table(found: Found) -> Table:
    """A row for each method and policy."""
    body, ids = [], []
    for curves in found:
        base = next((curve.rate for name, curve in curves.items() if name == (BASE, FIRST)), None)
        for (_, policy), curve in curves.items():
            first, rate, there = curve.rows[0], curve.rate, curve.best
            line: dict[str, Any] = {
                "Method": label(first), "Policy": policy, "Dataset": first.dataset, "Model": model_name(first),
                "Arrivals": first.arrivals, "Batch": first.batch_size, "SLO (ms)": first.slo_ms,
                "Largest rate (prompts / s)": rate,
                "Over full-batching, fifo": None if rate is None or base is None else _over(rate, base, curve, curves),
            }  # fmt: skip
            if there is not None:
                line |= {
                    "p99 there (s)": interval(there.ttft_p99_s, there.ttft_p99_low_s, there.ttft_p99_high_s),
                    "Queue there, mean (s)": there.queue_mean_s, "Prompts / batch": there.prompts_per_batch_mean,
                    "Computed / useful": there.padding_ratio, "Busy (%)": 100 * (there.busy_share or 0.0),
                }  # fmt: skip
            body.append(line)
            ids.append([row.run_id for row in curve.rows])
    return make_table(COLUMNS, body, ids)


def _over(rate: Interval, base: Interval, curve: Curve, curves: dict[tuple[str, str], Curve]) -> Interval | float:
    """A rate over full-batching's, with the widest interval that both allow."""
    if curve is curves[BASE, FIRST]:
        return 1.0
    return Interval(rate.value / base.value, rate.low / base.high, rate.high / base.low)


def claims(found: Found) -> list[Claim]:
    """The paper measures no arrivals."""
    return []


def notes(found: Found) -> list[str]:
    """How many runs, and which of them are not to be relied upon."""
    rows = [row for curves in found for curve in curves.values() for row in curve.rows]
    tried = f"{len(rows)} runs of {max(row.num_prompts for row in rows):,} prompts, {rows[0].clock} clock"
    few = "where a run has fewer than 10 busy periods, which leaves no interval, its p99 itself counts"
    invalid = sum(row.valid is False for row in rows)
    doubts = [f"{invalid} of the runs are INVALID"] if invalid else []
    return [tried, few, *doubts, *(line for line in validity(rows) if line.startswith("INVALID"))]


def figure(found: Found) -> Any:
    """The 99th percentile over the rate: a panel for each setting and policy, a curve for each method."""
    panels = [(curves, policy) for curves in found for policy in dict.fromkeys(name[1] for name in curves)]
    drawn, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.6), layout="constrained", sharey=True, squeeze=False
    )
    for panel, (curves, policy) in zip(axes[0], panels, strict=True):
        own = {name: curve for name, curve in curves.items() if name[1] == policy}
        for (method, _), curve in own.items():
            color = STYLE[method]["color"]
            rates = [row.rate or 0.0 for row in curve.rows]
            p99 = [1000 * (row.ttft_p99_s or 0.0) for row in curve.rows]
            panel.plot(rates, p99, "o-", color=color, markersize=3.5, label=method)
            for row, rate in zip(curve.rows, rates, strict=True):
                if row.ttft_p99_low_s is not None and row.ttft_p99_high_s is not None:
                    panel.plot([rate] * 2, [1000 * row.ttft_p99_low_s, 1000 * row.ttft_p99_high_s], color=color, lw=0.8)
            if curve.best is not None and curve.best.rate:
                panel.axvline(curve.best.rate, color=color, lw=0.8, ls=":")
        first = next(iter(own.values())).rows[0]
        panel.axhline(first.slo_ms or 0.0, color="black", lw=0.8, ls="--")
        panel.annotate(f"objective {first.slo_ms:g} ms", (1, first.slo_ms or 1.0), xycoords=("axes fraction", "data"),
                       ha="right", va="bottom", fontsize=7)  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("prompts a second that arrive")
        panel.set_title(f"{policy}\n{titled([row for curve in own.values() for row in curve.rows])}", fontsize=8)
        panel.legend(fontsize=7, frameon=False)
        finish_axes(panel)
    axes[0][0].set_ylabel("time to first token, 99th percentile (ms)")
    return drawn
