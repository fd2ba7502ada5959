"""A thread that reads memory and utilization while batches are timed: NVML where there is a GPU, else the process."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from .nvml import NoCounters, NvmlCounters, Reading, SplitCounters, throttle_names
from .process import ProcessCounters

VALID_WINDOWS = 5
ANSWER_S = 5.0  # a driver that has not answered after this long is taken for hung
ENERGY_S = 1.5  # over a shorter span the counter's steps of some 0.1 s make an error of several percent
RISE_S = 1.0  # for so long after idling the first readings may show a clock that is still rising
STOP_S = 2.0  # the longest that leaving the sampler may take

Counters = ProcessCounters | NvmlCounters | SplitCounters | NoCounters


@dataclass(frozen=True)
class Usage:
    """What was seen in a span of time; None where a counter gave nothing.

    Attributes:
        energy_j: rise of the energy counter between the first and the last reading, scaled to the whole span; none of a
            span too short for the counter's steps.
        seconds: how long the span was.
        min_sm_clock_mhz, max_sm_clock_mhz: of the readings from when the clock had risen after idling.
        rising_sm_clock_mhz: the lowest reading before that; None where the first one was settled already.
        throttle_reasons: in words, harmless ones left out; empty where the driver answered that there are none.
        windows: independent averaging windows of the utilization counter within the span.
        readings: times that the counters were read within the span.
        gaps: why a counter gave nothing, or not always.
        source: ``nvml``, ``process`` or ``none``.
    """

    max_utilization_pct: float | None
    mean_utilization_pct: float | None
    mean_memory_utilization_pct: float | None
    max_memory_mb: float | None
    max_device_memory_mb: float | None
    mean_power_w: float | None
    energy_j: float | None
    seconds: float
    mean_sm_clock_mhz: float | None
    min_sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    rising_sm_clock_mhz: float | None
    mean_memory_clock_mhz: float | None
    mean_cpu_clock_mhz: float | None
    max_temperature_c: float | None
    throttle_reasons: tuple[str, ...] | None
    other_processes: int | None
    other_processes_mb: float | None
    windows: int
    readings: int
    gaps: dict[str, str]
    source: str

    @property
    def valid(self) -> bool:
        """Whether utilization rests on enough windows to be believed."""
        return self.mean_utilization_pct is not None and self.windows >= VALID_WINDOWS


def counters_for(*devices: torch.device, answer_s: float = ANSWER_S) -> Counters:
    """The counters that exist for the devices; a driver that is silent for ``answer_s`` seconds counts as none."""
    if devices[0].type != "cuda":
        return ProcessCounters()
    found = [gpu_counters(functools.partial(_uuid, device), answer_s) for device in devices]
    answering = [counters for counters in found if isinstance(counters, NvmlCounters)]
    return found[0] if len(found) == 1 or len(answering) < len(found) else SplitCounters(answering)


def _uuid(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def gpu_counters(uuid: Callable[[], str], answer_s: float = ANSWER_S) -> NvmlCounters | NoCounters:
    """The driver's counters of one GPU, or the reason why there are none, within ``answer_s`` seconds."""
    found: list[NvmlCounters | NoCounters] = []

    def ask() -> None:
        try:
            found.append(NvmlCounters(uuid()))
        except Exception as error:  # pynvml missing, no driver library, no such UUID: the run goes on without telemetry
            found.append(NoCounters(f"{type(error).__name__}: {error}"))

    # In a thread, because a call that hangs inside the driver cannot be ended, only left behind.
    asking = threading.Thread(target=ask, name="find-counters", daemon=True)
    asking.start()
    asking.join(answer_s)
    return found[0] if found else NoCounters(f"the driver did not answer within {answer_s:g} s")


@dataclass
class Sampler:
    """Reads ``counters`` every ``interval_s`` seconds in a thread, from ``with`` entry to exit.

    Leaving takes ``STOP_S`` seconds at most: a reading that hangs is left behind, and ``failure`` says so.
    """

    counters: Any
    interval_s: float
    failure: str | None = None
    reading_s: list[float] = field(default_factory=list)  # how long each reading took
    _readings: list[tuple[float, Reading]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _asked_at: float | None = None  # when the reading that has not returned yet began

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=STOP_S)
            if self._thread.is_alive():
                self.failure = f"hung: a reading did not return within {self._waiting_s(time.perf_counter()):.1f} s"

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.interval_s):
                self._asked_at = asked_at = time.perf_counter()
                reading = self.counters.read()
                self._readings.append((time.perf_counter(), reading))
                self.reading_s.append(time.perf_counter() - asked_at)
                self._asked_at = None
        except Exception as error:  # a counter's failure ends telemetry, never the measurement
            self._asked_at = None
            self.failure = f"{type(error).__name__}: {error}"

    def _waiting_s(self, now: float) -> float:
        asked_at = self._asked_at
        return 0.0 if asked_at is None else now - asked_at

    def usage(self, start_s: float, end_s: float) -> Usage:
        """What was read between two readings of ``time.perf_counter``."""
        within = [(at, reading) for at, reading in list(self._readings) if start_s <= at <= end_s]

        def seen(name: str) -> list[float]:
            return [reading.values[name] for _, reading in within if name in reading.values]

        def mean(name: str) -> float | None:
            values = seen(name)
            return sum(values) / len(values) if values else None

        gaps = _gaps([reading for _, reading in within])
        if self.failure:
            gaps["sampler"] = self.failure
        elif (waiting := self._waiting_s(end_s)) > max(STOP_S, 5 * self.interval_s):
            gaps["sampler"] = f"hung: a reading has not returned for {waiting:.1f} s"
        elif not within:
            gaps["sampler"] = f"no reading within {end_s - start_s:.2f} s"
        energy_j, why_none = _energy(within, end_s - start_s)
        if why_none and "sampler" not in gaps:
            gaps.setdefault("energy_j", why_none)
        masks, others = seen("clock_event_reasons"), seen("other_processes")
        reasons = {name for mask in masks for name in throttle_names(int(mask))}
        utilization = seen("utilization_pct")
        clocks = [(at - start_s, reading.values.get("sm_clock_mhz")) for at, reading in within]
        rising_mhz, settled_mhz = _rising([(at, mhz) for at, mhz in clocks if mhz is not None])
        return Usage(
            max_utilization_pct=max(utilization, default=None),
            mean_utilization_pct=mean("utilization_pct"),
            mean_memory_utilization_pct=mean("memory_utilization_pct"),
            max_memory_mb=max(seen("process_memory_mb"), default=None),
            max_device_memory_mb=max(seen("device_memory_mb"), default=None),
            mean_power_w=mean("power_w"),
            energy_j=energy_j,
            seconds=end_s - start_s,
            mean_sm_clock_mhz=mean("sm_clock_mhz"),
            min_sm_clock_mhz=min(settled_mhz, default=None),
            max_sm_clock_mhz=max(settled_mhz, default=None),
            rising_sm_clock_mhz=min(rising_mhz, default=None),
            mean_memory_clock_mhz=mean("memory_clock_mhz"),
            mean_cpu_clock_mhz=mean("cpu_clock_mhz"),
            max_temperature_c=max(seen("temperature_c"), default=None),
            throttle_reasons=tuple(sorted(reasons)) if masks else None,
            other_processes=int(max(others)) if others else None,
            other_processes_mb=max(seen("other_processes_mb"), default=None),
            windows=self.counters.windows(end_s - start_s, len(utilization)),
            readings=len(within),
            gaps=gaps,
            source=self.counters.source,
        )


def _rising(clocks: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """A span's clocks, each with the seconds since its start: those that still rise after idling, and the settled ones.

    A reading still rises where the next one is higher and all before it rose too, within ``RISE_S`` seconds.
    """
    first = 0
    while first + 1 < len(clocks) and clocks[first][0] <= RISE_S and clocks[first][1] < clocks[first + 1][1]:
        first += 1
    return [mhz for _, mhz in clocks[:first]], [mhz for _, mhz in clocks[first:]]


def _gaps(readings: list[Reading]) -> dict[str, str]:
    """Why counters gave nothing: the first reason of each, with how often it was missing where it answered at times."""
    missing = Counter(name for reading in readings for name in reading.gaps)
    gaps: dict[str, str] = {}
    for reading in readings:
        for name, reason in reading.gaps.items():
            share = "" if missing[name] == len(readings) else f" (in {missing[name]} of {len(readings)} readings)"
            gaps.setdefault(name, reason + share)
    return gaps


def _energy(within: list[tuple[float, Reading]], seconds: float) -> tuple[float | None, str | None]:
    """Energy of a span in J, or why it is not known (no reason where there is no such counter at all)."""
    counted = [(at, reading.values["energy_j"]) for at, reading in within if "energy_j" in reading.values]
    if not counted:
        return None, None
    (first_at, first), (last_at, last) = counted[0], counted[-1]
    if last_at <= first_at:
        return None, "a single reading tells no difference"
    if last_at - first_at < ENERGY_S:
        return None, f"{last_at - first_at:.1f} s of readings are too short to tell energy"
    if last < first:
        return None, "the counter went backwards"
    return (last - first) * seconds / (last_at - first_at), None
