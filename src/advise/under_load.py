"""Advice under load: which method, policy and batch size keep an objective at a rate, from predicted times of batches.

The clock is predicted: the queue is simulated as for a measurement (``queueing/loop.py``), but a batch takes the
seconds that the calibrated cost model gives it. Uncertainty is the model's: the same with every batch as much slower,
and as much faster, as 95 % of the calibration's batches were at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import POLICIES, Config
from ..interval import Interval
from ..jobs.largest_rate import PER_DOUBLING, judged, rate_of, steps
from ..jobs.trying import drive
from ..measure.load import looked_at
from ..measure.plan import Plan
from ..measure.work import ForwardSettings, work_of
from ..prefilling.method import Method
from ..prefilling.methods import BASELINE, METHODS
from ..prefilling.shape import Shape
from ..queueing.loop import Floats, Serve, Served, virtual
from ..queueing.policy import Rules, bounds, chooser
from ..queueing.waits import Waits, waits_of
from ..report.cells import Column, as_markdown, estimate, fixed, make_table, significant, tells
from ..report.waiting import kept_up
from ..workload.arrivals import stretched
from .calibrate import Bench
from .choosing import UNCERTAIN
from .cost import CostModel

FIRST = "fifo"
MOST = 500  # prompts of a prediction


@dataclass(frozen=True)
class ChoiceUnderLoad:
    """A method with a policy and a batch size, and what is predicted for it at the rate asked for."""

    method: Method
    policy: str
    batch_size: int
    waits: Waits
    p99_s: Interval
    largest: Interval | None = None  # rate that keeps the objective; None: none does

    @property
    def name(self) -> str:
        """What to type for it."""
        return f"{self.method.name} with policy={self.policy} batch_size={self.batch_size}"


class Predictor:
    """Simulates the queue of a plan's arrivals, at any rate, under any method, policy and batch size.

    Args:
        plan: with arrivals, of which the first ``MOST`` prompts are simulated.
        model: the costs of this machine and model.
    """

    def __init__(self, plan: Plan, shape: Shape, model: CostModel) -> None:
        order = np.concatenate(plan.shuffled)[:MOST]
        assert plan.arrivals_s is not None
        self.plan, self._shape, self._model = plan, shape, model
        # The first of a trace may come faster or slower than all of it.
        self.lengths = plan.prompts.lengths[order]
        self._times_s = stretched(plan.arrivals_s[:MOST], float(plan.config.rate or 1.0))
        self.rate = float(plan.config.rate or 1.0)
        self._seconds: dict[tuple[str, tuple[int, ...]], float] = {}

    def serve(self, method: Method, factor: float = 1.0) -> Serve:
        """How long batches are predicted to take, times ``factor``."""
        settings = ForwardSettings.of(self.plan)

        def seconds(members: Sequence[int]) -> float:
            lengths = tuple(sorted(self.lengths[list(members)].tolist()))
            if (method.name, lengths) not in self._seconds:
                work = work_of(self._shape, method, lengths, settings)
                self._seconds[method.name, lengths] = float(self._model.seconds(work))
            return factor * self._seconds[method.name, lengths]

        return seconds

    def served(self, method: Method, policy: str, batch_size: int, rate: float, serve: Serve) -> Served:
        """The queue at a rate, with batches that take what ``serve`` says."""
        c = replace(self.plan.config, batch_size=batch_size)
        times_s: Floats = self._times_s * (self.rate / rate)
        rules = Rules(method, self.lengths, times_s, batch_size, self.plan.pack, c.token_budget, looked_at(c),
                      bounds(c.buckets, self.lengths), c.ageing)  # fmt: skip
        return virtual(times_s, chooser(policy, rules), serve)

    def waits(self, method: Method, policy: str, batch_size: int, rate: float, factor: float = 1.0) -> Waits:
        """What prompts are predicted to wait, without intervals: how far costs are off says more than chance does."""
        slo_ms = self.plan.config.slo_ms
        served = self.served(method, policy, batch_size, rate, self.serve(method, factor))
        return waits_of(served, None if slo_ms is None else slo_ms / 1000, draws=0)

    def largest(self, method: Method, policy: str, batch_size: int, factor: float = 1.0) -> float:
        """The largest rate at which p99 is predicted to keep the objective; 0: none does."""
        slo_s = (self.plan.config.slo_ms or 0.0) / 1000

        def became(step: int) -> str:
            found = self.waits(method, policy, batch_size, rate_of(step), factor)
            return judged(found.stable, found.ttft["p99"].value <= slo_s, found.busy_share)

        keeps, _ = drive(steps(round(PER_DOUBLING * float(np.log2(self.rate)))), became)
        return 0.0 if keeps is None else rate_of(keeps)

    def knows(self, method: Method) -> bool:
        """Whether its batches can be predicted."""
        return self._model.knows(method.name)

    def spread(self, method: Method) -> tuple[float, float]:
        """Factors by which batches may be faster and slower than predicted."""
        half = self._model.spread(method.name)
        return float(np.exp(-half)), float(np.exp(half))


def choices(predictor: Predictor, batch_sizes: Sequence[int]) -> list[ChoiceUnderLoad]:
    """Every method under every policy, full-batching with fifo first.

    Each with the batch size that keeps the objective up to the largest rate or, without one, has the lowest p99.
    """
    found, searches = [], predictor.plan.config.slo_ms is not None
    online = [method for method in METHODS.values() if not method.needs_dataset and predictor.knows(method)]
    for method in online:
        fast, slow = predictor.spread(method)
        for policy in POLICIES:
            waits = {size: predictor.waits(method, policy, size, predictor.rate) for size in batch_sizes}
            rates = {size: predictor.largest(method, policy, size) if searches else 0.0 for size in batch_sizes}
            size = min(waits, key=lambda size: (-rates[size], not waits[size].stable, waits[size].ttft["p99"].value))
            ends = [predictor.waits(method, policy, size, predictor.rate, f).ttft["p99"].value for f in (fast, slow)]
            choice = ChoiceUnderLoad(method, policy, size, waits[size], _around(waits[size].ttft["p99"].value, *ends))
            if rates[size]:
                ends = [predictor.largest(method, policy, size, factor) for factor in (fast, slow)]
                choice = replace(choice, largest=_around(rates[size], *ends))
            found.append(choice)
    return sorted(found, key=lambda each: (each.method.name != BASELINE, each.method.name, each.policy != FIRST))


def _around(value: float, *ends: float) -> Interval:
    """An interval that holds its value, as a search on a grid of rates may find the same rate twice."""
    return Interval(value, min(value, *ends), max(value, *ends))


def _ms(seconds: Interval) -> Interval:
    return Interval(1000 * seconds.value, 1000 * seconds.low, 1000 * seconds.high)


def table(found: Sequence[ChoiceUnderLoad], slo_ms: float | None) -> str:
    """A Markdown table of every choice."""
    columns = [
        Column("Method"), Column("Policy"), Column("Batch size"), Column("p99 TTFT (ms)", estimate()),
        Column("mean TTFT (ms)", significant), Column("Busy (%)", fixed(0)), Column("Kept up"),
        *([Column("Largest rate (prompts / s)", estimate(), "none")] if slo_ms is not None else []),
    ]  # fmt: skip
    body = [
        {"Method": each.method.name, "Policy": each.policy, "Batch size": each.batch_size,
         "p99 TTFT (ms)": _ms(each.p99_s),
         "mean TTFT (ms)": 1000 * each.waits.ttft["mean"].value, "Busy (%)": 100 * each.waits.busy_share,
         "Kept up": kept_up(each.waits.stable),
         **({"Largest rate (prompts / s)": each.largest} if slo_ms is not None else {})}
        for each in found
    ]  # fmt: skip
    return as_markdown(make_table(columns, body, ()))


def advice(found: Sequence[ChoiceUnderLoad], c: Config) -> tuple[ChoiceUnderLoad, str]:
    """The choice to make, and sentences that say what to expect.

    With an objective the one that keeps it up to the largest rate, else the one of the lowest p99. What the prediction
    does not tell from it is named.
    """
    best = max(found, key=lambda each: (each.largest.value if each.largest else 0.0, -each.p99_s.value))
    p99 = _ms(best.p99_s)
    keeps = c.slo_ms is None or (best.waits.stable and p99.value <= c.slo_ms)
    objective = "" if c.slo_ms is None else f" of {c.slo_ms:g} ms"
    at = f"at {c.rate:g} prompts a second"
    known = f" [{p99.low:.0f}, {p99.high:.0f}]" if tells(p99.low, p99.high) else ""
    words = [
        f"Use {best.name}: p99 is expected to be {p99.value:.0f} ms{known} {at}{'' if known else f', {UNCERTAIN}'}."
    ]
    if not keeps:
        words = [f"Nothing is expected to keep the objective{objective} {at}. {best.name} comes nearest."]
    if best.largest is not None:
        base = next(each for each in found if each.method.name == BASELINE and each.policy == FIRST)
        over = f", {best.largest.value / base.largest.value:.2f}x of full-batching, fifo" if base.largest else ""
        low, high = best.largest.low, best.largest.high
        ends = f" [{low:g}, {high:g}]" if tells(low, high) else ""
        words.append(f"It keeps the objective{objective} up to {best.largest.value:g}{ends} prompts a second{over}.")
        rivals = [each.name for each in found if each is not best and each.largest is not None
                  and each.largest.high >= best.largest.value]  # fmt: skip
        shown = rivals[:3] + ([f"{len(rivals) - 3} more"] if len(rivals) > 3 else [])
        if rivals:
            words.append(f"The prediction does not tell it from {' and '.join(shown)}.")
    return best, " ".join(words)


def check(predictor: Predictor, bench: Bench, found: Sequence[ChoiceUnderLoad]) -> str:
    """Serve the same arrivals with batches that are really computed, by each method's best policy, beside fifo."""
    plan, order = predictor.plan, np.concatenate(predictor.plan.shuffled)
    columns = [Column("Method"), Column("Policy"), Column("Batch size"), Column("Predicted p99 (ms)", estimate()),
               Column("Measured p99 (ms)", estimate()), Column("Error (%)", fixed(0))]  # fmt: skip
    body = []
    for each in _worth_checking(found):

        def measured(members: Sequence[int], method: Method = each.method) -> float:
            return bench.seconds(method, plan.token_ids(order[list(members)]))

        waits = _after_one_batch(predictor, each, measured)
        theirs = waits.ttft["p99"]
        body.append({
            "Method": each.method.name, "Policy": each.policy, "Batch size": each.batch_size,
            "Predicted p99 (ms)": _ms(each.p99_s), "Measured p99 (ms)": _ms(theirs),
            "Error (%)": 100 * (each.p99_s.value / theirs.value - 1),
        })  # fmt: skip
    return as_markdown(make_table(columns, body, ()))


def _after_one_batch(predictor: Predictor, each: ChoiceUnderLoad, serve: Callable[[Sequence[int]], float]) -> Waits:
    serve(list(range(min(each.batch_size, len(predictor.lengths)))))  # libraries load
    return waits_of(predictor.served(each.method, each.policy, each.batch_size, predictor.rate, serve), None)


def _worth_checking(found: Sequence[ChoiceUnderLoad]) -> list[ChoiceUnderLoad]:
    picked = []
    for method in dict.fromkeys(each.method.name for each in found):
        own = [each for each in found if each.method.name == method]
        best = min(own, key=lambda each: each.p99_s.value)
        picked += [each for each in own if each.policy == FIRST or each is best]
    return picked
