"""What the sampler costs: the same short work with it and without, in turns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from src.measure.sampler import Sampler

READINGS_PER_SPAN = 2
FEWEST_PAIRS = 3


def sampler_overhead(device: torch.device, counters: Any, interval_s: float, seconds: float) -> dict[str, Any]:
    """Measure how much longer work takes while ``counters`` are read every ``interval_s`` seconds.

    Pairs of spans, one with the sampler and one without, over an identical number of small matrix products; which of
    the two comes first alternates, so that drift cancels. Nothing is left out: on a busy machine the spread says so,
    and a median below zero means that the cost drowns in noise.

    Args:
        seconds: about how long this may take; 0 leaves it out. A machine so busy that it takes twice as long is given
            up, with what pairs there are.

    Returns:
        For the manifest: ``sampler_overhead_pct`` (median over pairs), its lowest and highest pair and their number,
        and ``sampler_reading_ms``, the median time of a reading, which says what the cost is where the pairs drown in
        noise. Else None with ``sampler_overhead_missing``, the reason.
    """
    span_s = max(0.05, READINGS_PER_SPAN * interval_s)
    pairs = int(seconds / (2 * span_s))
    if pairs < FEWEST_PAIRS:
        why = "switched off" if seconds == 0 else f"{seconds:g} s hold only {pairs} pairs of {span_s:g} s"
        return {"sampler_overhead_pct": None, "sampler_overhead_missing": why}
    try:
        percent, reading_s = _pairs(device, counters, interval_s, span_s, pairs, time.perf_counter() + 2 * seconds)
    except (RuntimeError, MemoryError) as error:  # no memory left for even this: telemetry never ends a run
        return {"sampler_overhead_pct": None, "sampler_overhead_missing": f"{type(error).__name__}: {error}"}
    if len(percent) < FEWEST_PAIRS:
        why = f"the machine is too busy: {len(percent)} pairs of {span_s:g} s in {2 * seconds:g} s"
        return {"sampler_overhead_pct": None, "sampler_overhead_missing": why}
    return {
        "sampler_overhead_pct": float(np.median(percent)),
        "sampler_overhead_lowest_pct": min(percent),
        "sampler_overhead_highest_pct": max(percent),
        "sampler_overhead_pairs": len(percent),
        "sampler_reading_ms": 1000 * float(np.median(reading_s)) if reading_s else None,
    }


def _pairs(
    device: torch.device, counters: Any, interval_s: float, span_s: float, pairs: int, deadline_s: float
) -> tuple[list[float], list[float]]:
    """Percent by which the span with the sampler took longer, of each pair; and seconds of each reading.

    Raises:
        RuntimeError: a reading failed or hung, so that there is no working sampler to be measured.
    """
    work = torch.ones(256, 256, device=device)

    def span(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(work, work)
            if time.perf_counter() > deadline_s:
                break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    span(20)
    times = max(20, int(100 * span_s / max(span(100), 1e-6)))
    percent: list[float] = []
    reading_s: list[float] = []
    for pair in range(pairs):
        taken: dict[bool, float] = {}
        for sampled in (True, False) if pair % 2 else (False, True):
            if not sampled:
                taken[sampled] = span(times)
                continue
            with Sampler(counters, interval_s) as sampler:
                taken[sampled] = span(times)
            if sampler.failure:
                raise RuntimeError(f"the sampler stopped ({sampler.failure})")
            reading_s += sampler.reading_s
        if time.perf_counter() > deadline_s:
            break  # this pair was cut short
        percent.append(100 * (taken[True] / taken[False] - 1))
    return percent, reading_s
