"""Measures methods under load: prompts arrive one by one, wait, and are served in the batches that a policy forms."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..prefilling.method import PHASES, Method, Serving
from ..queueing import loop
from ..queueing.loop import Served
from ..queueing.policy import Rules, bounds, chooser
from ..queueing.waits import waits_of
from ..records import store
from ..records.row import Row
from .batch import timed_batch
from .compiling import Compiled
from .memory import PeakMemory
from .outcome import FAILURES, Outcome, Pass, Run, status_of
from .plan import Plan, shape_of
from .process import CpuTimes, CpuUse
from .sampler import Counters, Sampler
from .timer import PhaseTimer

LOOKED_AT = 4  # batches that lookahead looks at, unless it is told
APART_S = 0.02  # between the prompts that an engine is warmed up with one by one
DISTINCT_SIZES = 3  # of the batches that warm up: one prompt, a whole batch, and between


def serve(run: Run, counters: Counters) -> None:
    """Let each method serve the same arrivals, one method after the other; each batch takes what it really takes."""
    plan, c = run.plan, run.plan.config
    timer, memory = PhaseTimer(*plan.devices), PeakMemory(*plan.devices)
    with Sampler(counters, c.sampler_interval_s) as sampler:
        for outcome in run.outcomes:
            if outcome.status != "ok":
                continue
            gc.disable()
            try:
                memory.reset()
                compiled = Compiled.now()
                _warm_up(plan, outcome, timer)
                warm = Compiled.now()
                outcome.compiled += warm - compiled
                before, start_s = CpuTimes.now(), time.perf_counter()
                clock = loop.real if c.clock == "real" else loop.virtual
                samples = _serve(plan, outcome, timer, clock)
                end_s, cpu = time.perf_counter(), CpuUse.since(before)
                outcome.compiled_timed = Compiled.now() - warm
            except FAILURES as error:
                outcome.fail(*status_of(error))
                continue
            finally:
                gc.enable()
            usage = sampler.usage(start_s, end_s)
            outcome.passes = [Pass(samples, end_s - start_s, usage, memory.read(run.held_beside_mb(outcome)), cpu)]


def _warm_up(plan: Plan, outcome: Outcome, timer: PhaseTimer) -> None:
    order = np.concatenate(plan.shuffled)
    for _ in range(plan.config.warmup):
        if isinstance(outcome.engine, Serving):
            first = order[: plan.config.batch_size]
            for apart_s in (0.0, APART_S):  # as one batch, and then one by one, which take other paths
                outcome.engine.serve(plan.token_ids(first), np.arange(len(first)) * apart_s)
            continue
        for size in np.unique(np.linspace(1, plan.config.batch_size, DISTINCT_SIZES).astype(int)):
            timed_batch(plan, outcome, timer, order[:size])
        if plan.config.forward == "graphs":  # which are captured for each bucket of batches, as these form
            _serve(plan, outcome, timer, loop.virtual)


def _serve(plan: Plan, outcome: Outcome, timer: PhaseTimer, clock: Any) -> list[dict[str, Any]]:
    """Serve all arrivals; the samples of the batches that formed, which become the method's own.

    Args:
        clock: ``loop.virtual`` or ``loop.real``.
    """
    assert plan.arrivals_s is not None
    if outcome.method.serves:
        return _serve_by_engine(plan, outcome)
    order, lengths = np.concatenate(plan.shuffled), plan.prompts.lengths
    samples: list[dict[str, Any]] = []

    def compute(members: Sequence[int]) -> float:
        numbers, phases, done = timed_batch(plan, outcome, timer, order[list(members)])
        del done
        row = store.sample_row(0, 0, len(samples), numbers, phases, timer.host_seconds, PHASES)
        samples.append(row)
        return float(row["seconds"])

    choose = chooser(plan.config.policy, rules_of(plan, outcome))
    served = clock(plan.arrivals_s, choose, compute)
    batches = [order[members] for members in served.batches]
    shapes = [shape_of(outcome.method, lengths[batch], plan.pack) for batch in batches]
    outcome.assignment, outcome.served = replace(outcome.assignment, batches=batches, shapes=shapes), served
    return samples


def _serve_by_engine(plan: Plan, outcome: Outcome) -> list[dict[str, Any]]:
    """Have a serving engine serve all arrivals in real time; one sample, for its batches are its own."""
    order, engine = np.concatenate(plan.shuffled), outcome.engine
    assert plan.arrivals_s is not None
    assert isinstance(engine, Serving)
    first_tokens_s = engine.serve(plan.token_ids(order), plan.arrivals_s)
    outcome.served = loop.by_engine(plan.arrivals_s, first_tokens_s)
    lengths = plan.prompts.lengths
    outcome.assignment = replace(
        outcome.assignment, batches=[order], shapes=[shape_of(outcome.method, lengths, plan.pack)]
    )
    span_s, tokens = max(first_tokens_s) - float(plan.arrivals_s[0]), int(lengths.sum())
    numbers = {"prompts": len(order), "useful_tokens": tokens, "computed_tokens": tokens, "rows": 1,
               "attention_pairs": None}  # fmt: skip
    return [store.sample_row(0, 0, 0, numbers, {"forward": span_s}, span_s, PHASES)]


def rules_of(plan: Plan, outcome: Outcome) -> Rules:
    """What the policy may know of a plan's prompts, which it numbers in the order of their arrival."""
    assert plan.arrivals_s is not None
    c, lengths = plan.config, plan.prompts.lengths[np.concatenate(plan.shuffled)]
    return Rules(
        outcome.method, lengths, plan.arrivals_s, c.batch_size, plan.pack, c.token_budget, looked_at(c),
        bounds(c.buckets, lengths), c.ageing,
    )  # fmt: skip


def looked_at(c: Config) -> int:
    """How many of those who wait lookahead looks at."""
    return c.lookahead or LOOKED_AT * c.batch_size


def asked(c: Config, method: Method) -> dict[str, Any]:
    """The row's columns that say how prompts arrive and who is served next."""
    given = {"token-budget": f" {c.token_budget}", "lookahead": f" {looked_at(c)}", "buckets": f" {c.buckets}",
             "shortest-first": f" {c.ageing:g}"}  # fmt: skip
    trace = Path(c.trace).name if c.trace else "of the dataset"
    arrivals = {"gamma": f"gamma {c.burstiness:g}", "trace": f"trace {trace}"}
    return {
        "arrivals": arrivals.get(c.arrivals, c.arrivals), "rate": c.rate, "clock": c.clock, "slo_ms": c.slo_ms,
        "policy": "its own" if method.serves else c.policy + given.get(c.policy, ""),
    }  # fmt: skip


def add_waits(row: Row, served: Served, slo_ms: float | None, seed: int) -> None:
    """Fill in what prompts waited, and how far the device kept up."""
    found = waits_of(served, None if slo_ms is None else slo_ms / 1000, seed)
    for name in ("mean", "p50", "p90", "p99"):
        setattr(row, f"ttft_{name}_s", found.ttft[name].value)
    for name in ("mean", "p99"):
        setattr(row, f"ttft_{name}_low_s", found.ttft[name].low)
        setattr(row, f"ttft_{name}_high_s", found.ttft[name].high)
        setattr(row, f"queue_{name}_s", found.queue[name].value)
    row.prompts_per_batch_mean = None if served.within else row.num_prompts / len(served.batches)
    row.busy_share, row.busy_periods, row.arrived_per_s = found.busy_share, found.busy_periods, found.rate
    row.goodput_per_s, row.stable = found.goodput, found.stable


def requests(plan: Plan, served: Served) -> list[dict[str, Any]]:
    """One line for each prompt: tokens, when it arrived, in which batch, when that began, when its first token came."""
    order, batch = np.concatenate(plan.shuffled), served.batch_of
    return [
        {"prompt": int(order[number]), "tokens": len(plan.prompts.token_ids[order[number]]),
         "arrival_s": float(served.arrivals_s[number]), "batch": None if served.within else int(batch[number]),
         "start_s": None if served.within else served.starts_s[batch[number]],
         "first_token_s": served.ends_s[batch[number]]}
        for number in range(len(order))
    ]  # fmt: skip
