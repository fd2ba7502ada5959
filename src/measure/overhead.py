"""What the sampler costs: the same short work with it and without it, in turns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.stats
import torch

from .sampler import Sampler

DENSER = 20  # readings come this much more often than in a run, so that their cost stands out from the noise
REST = 4  # the pause between two readings is at least this many times as long as a reading
READINGS_PER_SPAN = 5
PROBE_SHARE = 0.1  # of the time there is, for finding out how long a reading takes
FEWEST_PAIRS = 5
TRIMMED = 0.2  # share of pairs left out at either end: another program's burst falls into one span of a pair


def sampler_overhead(device: torch.device, counters: Any, interval_s: float, seconds: float) -> dict[str, Any]:
    """Measure how much longer work takes while ``counters`` are read every ``interval_s`` seconds.

    Pairs of short spans, one with the sampler and one without, over an identical number of small matrix products;
    which of the two comes first alternates, so that drift cancels. Readings come up to ``DENSER`` times more often than
    in a run: the time that one costs the work is the difference of a pair over its readings, and the overhead is that
    time over ``interval_s``. It holds all that a reading does to the work: the lock of the interpreter, the core.

    Args:
        seconds: about how long this may take; 0 leaves it out. A machine so busy that it takes twice as long is given
            up, with what pairs there are.

    Returns:
        For the manifest: ``sampler_overhead_pct`` (20 % trimmed mean over pairs), its 95 % interval
        (``sampler_overhead_low_pct`` and ``_high_pct``: Tukey and McLaughlin's, from the winsorized variance), the
        numbers of pairs and readings, and ``sampler_reading_ms``, the median time of a reading. Else None with
        ``sampler_overhead_missing``, the reason.
    """
    if seconds == 0:
        return _missing("switched off")
    deadline_s = time.perf_counter() + 2 * seconds
    try:
        reading_s = _probe(counters, interval_s / DENSER, PROBE_SHARE * seconds)
        dense_s = min(interval_s, max(interval_s / DENSER, REST * reading_s))
        span_s = READINGS_PER_SPAN * (dense_s + reading_s)
        pairs = int((1 - PROBE_SHARE) * seconds / (2 * span_s))
        if pairs < FEWEST_PAIRS:
            return _missing(f"{seconds:g} s hold only {pairs} pairs of {span_s:.2g} s")
        longer_s, readings_s = _pairs(device, counters, dense_s, span_s, pairs, deadline_s)
    except (RuntimeError, MemoryError) as error:  # no memory left for even this: telemetry never ends a run
        return _missing(f"{type(error).__name__}: {error}")
    if len(longer_s) < FEWEST_PAIRS or not readings_s:
        return _missing(f"the machine is too busy: {len(longer_s)} pairs of {span_s:.2g} s in {2 * seconds:g} s")
    percent = 100 * np.array(longer_s) * len(longer_s) / len(readings_s) / interval_s
    low, high = scipy.stats.mstats.trimmed_mean_ci(percent, limits=(TRIMMED, TRIMMED), alpha=0.05)
    return {
        "sampler_overhead_pct": float(scipy.stats.trim_mean(percent, TRIMMED)),
        "sampler_overhead_low_pct": float(low),
        "sampler_overhead_high_pct": float(high),
        "sampler_overhead_pairs": len(longer_s),
        "sampler_overhead_readings": len(readings_s),
        "sampler_reading_ms": 1000 * float(np.median(readings_s)),
    }


def _missing(why: str) -> dict[str, Any]:
    return {"sampler_overhead_pct": None, "sampler_overhead_missing": why}


def _probe(counters: Any, interval_s: float, seconds: float) -> float:
    """Median seconds of a reading; in the sampler's thread, because a reading may hang.

    Raises:
        RuntimeError: a reading failed or hung, so that there is no working sampler to be measured.
    """
    with Sampler(counters, min(interval_s, seconds / 2)) as sampler:
        time.sleep(seconds)
    _refuse_broken(sampler)
    return float(np.median(sampler.reading_s)) if sampler.reading_s else 0.0


def _refuse_broken(sampler: Sampler) -> None:
    if sampler.failure:
        raise RuntimeError(f"the sampler stopped ({sampler.failure})")


def _pairs(
    device: torch.device, counters: Any, interval_s: float, span_s: float, pairs: int, deadline_s: float
) -> tuple[list[float], list[float]]:
    """Seconds by which the span with the sampler took longer, of each pair; and seconds of each reading.

    Raises:
        RuntimeError: a reading failed or hung.
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
    times = max(5, int(100 * span_s / max(span(100), 1e-6)))
    longer_s: list[float] = []
    readings_s: list[float] = []
    for pair in range(pairs):
        taken: dict[bool, float] = {}
        for sampled in (True, False) if pair % 2 else (False, True):
            if not sampled:
                taken[sampled] = span(times)
                continue
            with Sampler(counters, interval_s) as sampler:
                taken[sampled] = span(times)
            _refuse_broken(sampler)
        if time.perf_counter() > deadline_s:
            break  # this pair was cut short
        longer_s.append(taken[True] - taken[False])
        readings_s += sampler.reading_s
    return longer_s, readings_s
