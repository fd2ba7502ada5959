"""Under load: how long first tokens take at each rate of arrivals, and the largest rate that keeps an objective."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from ...interval import Interval
from ...prefilling.methods import method_of
from ...records.groups import place_of
from ...records.row import MACHINE, WORK, Row, key
from ...records.store import Record
from ..cells import Column, Marked, Table, estimate, fixed, make_table, significant, times
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
    "does not grow. Its interval reaches from the last whose p99 interval keeps it to the first whose does not; with "
    "few prompts these are too narrow."
)
TAKES = ("under_load", None)
FIRST = "fifo"
BASE_NAME = (BASE, FIRST, "virtual")
COLUMNS = (
    Column("Method"), Column("Policy"), Column("Clock"), Column("Dataset"), Column("Model"), Column("Arrivals"),
    Column("Batch"), Column("SLO (ms)", significant), Column("Largest rate (prompts / s)", estimate(), "none"),
    Column("Over full-batching, fifo", times), Column("p99 there (s)", estimate()),
    Column("Queue there, mean (s)", significant), Column("Prompts / batch", fixed(1)),
    Column("Computed / useful", fixed(2)), Column("Busy (%)", fixed(0)),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One method and policy at several rates, ascending."""

    rows: list[Row]

    @property
    def judged(self) -> list[Row]:
        """The runs that may be relied upon; all, where none may."""
        return [row for row in self.rows if row.valid is not False] or self.rows

    @property
    def best(self) -> Row | None:
        """The run at the largest rate that keeps the objective, if every lower one that was tried does, too."""
        kept = None
        for row in self.judged:
            if not _keeps(row, row.ttft_p99_s):
                break
            kept = row
        return kept

    @property
    def rate(self) -> Interval | None:
        """The largest rate, from the last that surely keeps the objective to the first that surely breaks it."""
        if self.best is None or self.best.rate is None:
            return None
        surely = [row.rate for row in self.judged if row.rate and _keeps(row, row.ttft_p99_high_s or row.ttft_p99_s)]
        broken = [row.rate for row in self.judged if row.rate and not _keeps(row, row.ttft_p99_low_s or row.ttft_p99_s)]
        rate = self.best.rate
        low = max((each for each in surely if each <= rate), default=float("nan"))
        return Interval(rate, low, min((each for each in broken if each > rate), default=float("nan")))


def _keeps(row: Row, p99_s: float | None) -> bool:
    return bool(row.stable) and p99_s is not None and row.slo_ms is not None and 1000 * p99_s <= row.slo_ms


Name = tuple[str, str, str]  # method, policy, clock
Found = list[dict[Name, Curve]]  # of each setting the curves


def select(records: Sequence[Record]) -> Found:
    """The curves of each setting: what is equal in everything but method, policy and rate."""
    settings: dict[tuple[Any, ...], dict[Name, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in clean(records, status="ok"):
        if row.arrivals is not None:
            same = (
                row.dataset,
                row.dataset_detail,
                row.seed,
                row.model,
                *key(row, WORK, MACHINE, but=("rate", "workload_fingerprint")),
            )
            settings[same][row.method, row.policy or "", row.clock or ""].append(row)
    found = []
    for _, curves in sorted(settings.items(), key=str):
        ordered = sorted(curves.items(), key=lambda each: (place_of(each[0][0]), each[0][1] != FIRST, each[0]))
        found.append({name: Curve(sorted(rows, key=lambda row: row.rate or 0.0)) for name, rows in ordered})
    return found


def table(found: Found) -> Table:
    """A row for each method and policy."""
    body, ids = [], []
    for curves in found:
        base = curves[BASE_NAME].rate if BASE_NAME in curves else None
        for (_, policy, clock), curve in curves.items():
            first, rate, there = curve.rows[0], curve.rate, curve.best
            line: dict[str, Any] = {
                "Method": label(first), "Policy": policy, "Clock": clock, "Dataset": first.dataset,
                "Model": model_name(first), "Arrivals": first.arrivals, "Batch": first.batch_size,
                "SLO (ms)": first.slo_ms,
                "Largest rate (prompts / s)": "no objective" if first.slo_ms is None else _or_more(rate),
            }  # fmt: skip
            if rate is not None and base is not None:
                line["Over full-batching, fifo"] = _over(rate, base, curve is curves[BASE_NAME])
            if there is not None:
                line |= {
                    "p99 there (s)": interval(there.ttft_p99_s, there.ttft_p99_low_s, there.ttft_p99_high_s),
                    "Queue there, mean (s)": there.queue_mean_s, "Prompts / batch": there.prompts_per_batch_mean,
                    "Computed / useful": there.padding_ratio, "Busy (%)": 100 * (there.busy_share or 0.0),
                }  # fmt: skip
            body.append(line)
            ids.append([row.run_id for row in curve.rows])
    return make_table(COLUMNS, body, ids)


def _or_more(rate: Interval | None) -> Interval | Marked | None:
    """A rate as it is shown; with no rate above it that broke the objective, it is the least that can be said."""
    return rate if rate is None or not math.isnan(rate.high) else Marked(rate.value, "or more")


def _over(rate: Interval, base: Interval, itself: bool) -> Interval | float:
    """A rate over full-batching's, with the widest interval that both allow."""
    if itself:
        return 1.0
    return Interval(rate.value / base.value, rate.low / base.high, rate.high / base.low)


def claims(found: Found) -> list[Claim]:
    """The paper measures no arrivals."""
    return []


def notes(found: Found) -> list[str]:
    """How many runs, and which of them are not to be relied upon."""
    rows = [row for curves in found for curve in curves.values() for row in curve.rows]
    tried = f"{len(rows)} runs of {max(row.num_prompts for row in rows):,} prompts"
    few = "where a run has fewer than 10 busy periods, which leaves no interval, its p99 itself counts"
    invalid = sum(row.valid is False for row in rows)
    doubts = [f"{invalid} of the runs are INVALID"] if invalid else []
    return [tried, few, *doubts, *(line for line in validity(rows) if line.startswith("INVALID"))]


def figure(found: Found) -> Any:
    """The 99th percentile over the rate: a panel for each setting and policy, a curve for each method.

    What ran in real time is dashed; engines with a queue of their own stand in the first panel of their setting.
    """
    panels = []
    for curves in found:
        policies = dict.fromkeys(name[1] for name in curves if not method_of(name[0]).serves)
        for place, policy in enumerate(policies or {"": None}):
            of_engines = place == 0
            own = {name: curve for name, curve in curves.items()
                   if name[1] == policy or (of_engines and method_of(name[0]).serves)}  # fmt: skip
            panels.append((policy, own))
    drawn, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for panel, (policy, own) in zip(axes[0], panels, strict=True):
        for (method, _, clock), curve in own.items():
            _draw(panel, curve, method, clock)
        first = next(iter(own.values())).rows[0]
        if first.slo_ms is not None:
            panel.axhline(first.slo_ms, color="black", lw=0.8, ls="--")
            panel.annotate(f"objective {first.slo_ms:g} ms", (0.01, first.slo_ms),
                           xycoords=("axes fraction", "data"), va="bottom", fontsize=7)  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("prompts a second that arrive")
        panel.set_title(f"{policy}\n{titled([row for curve in own.values() for row in curve.rows])}", fontsize=8)
        panel.legend(fontsize=7, frameon=False, loc="upper left")
        finish_axes(panel)
    axes[0][0].set_ylabel("time to first token, 99th percentile (ms)")
    return drawn


def _draw(panel: Any, curve: Curve, method: str, clock: str) -> None:
    """A curve with its intervals, and the largest rate as an upright line."""
    real, color = clock == "real", STYLE[method]["color"]
    rates, p99 = [row.rate for row in curve.rows], [1000 * (row.ttft_p99_s or 0.0) for row in curve.rows]
    panel.plot(rates, p99, marker="s" if real else "o", ls="--" if real else "-", color=color, markersize=3.5,
               label=f"{method}, real time" if real else method)  # fmt: skip
    for row in curve.rows:
        if row.ttft_p99_low_s is not None and row.ttft_p99_high_s is not None:
            panel.plot([row.rate] * 2, [1000 * row.ttft_p99_low_s, 1000 * row.ttft_p99_high_s], color=color, lw=0.8)
    if curve.best is not None and curve.best.rate:
        panel.axvline(curve.best.rate, color=color, lw=0.8, ls=":")
