"""The clock: phases that follow each other without a gap, between two synchronisations of the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class PhaseTimer:
    """Times one batch. ``start``, then ``lap`` at the end of each phase, then ``stop``.

    On a CUDA device a phase boundary is an event recorded on the stream, so that reading the clock does not hold the
    device up; a phase's time includes the device's wait for the host within it. On a CPU it is the host clock, as it is
    for a model that is split over several GPUs: they work one after the other, and each boundary waits for all.

    Without ``synchronizes`` (the fault ``no-sync``) nothing ever waits for the device: a batch's time is the host's
    until all of it was launched, and what the device still has to do then is charged to the batch that comes next.
    """

    def __init__(self, *devices: torch.device, synchronizes: bool = True) -> None:
        self._devices = devices
        self._synchronizes = synchronizes
        self._cuda = devices[0].type == "cuda"
        self._events = self._cuda and len(devices) == 1
        self._phases: list[str] = []
        self._marks: list[Any] = []
        self._kept: list[torch.cuda.Event] = []  # made once, as making one takes as long as recording it
        self._stream: torch.cuda.Stream | None = None
        self._started_s = 0.0
        self.host_seconds = 0.0

    def start(self) -> None:
        """Wait until the device is idle, then start the clock."""
        if self._synchronizes:
            self._synchronize()
        self._stream = torch.cuda.current_stream(self._devices[0]) if self._events else None
        self._phases, self._marks, self._started_s = [], [], time.perf_counter()
        self._marks.append(self._mark())

    def lap(self, phase: str) -> None:
        """End ``phase``, which began at the lap before (or at the start)."""
        self._marks.append(self._mark())
        self._phases.append(phase)

    def stop(self) -> dict[str, float]:
        """Wait until the device is idle and return the seconds of each phase; their sum is the batch's time.

        ``host_seconds`` then holds the host clock's reading of the same span, as a check.
        """
        if self._synchronizes:
            self._synchronize()
        self.host_seconds = time.perf_counter() - self._started_s
        if (
            self._cuda and not self._synchronizes
        ):  # the fault no-sync: nothing waits, and what is left falls to the next
            return {self._phases[-1]: self.host_seconds}
        seconds: dict[str, float] = {}
        for phase, before, after in zip(self._phases, self._marks, self._marks[1:], strict=False):
            span = before.elapsed_time(after) / 1000 if self._events else after - before
            seconds[phase] = seconds.get(phase, 0.0) + span
        return seconds

    def _mark(self) -> Any:
        if self._events:
            if len(self._kept) == len(self._marks):
                self._kept.append(torch.cuda.Event(enable_timing=True))
            event = self._kept[len(self._marks)]
            event.record(self._stream)
            return event
        if self._synchronizes:
            self._synchronize()
        return time.perf_counter()

    def _synchronize(self) -> None:
        if self._cuda:
            for device in self._devices:
                torch.cuda.synchronize(device)


class NoTimer:
    """For prefills that are not timed (verification, batch invariance, profiling)."""

    def lap(self, phase: str) -> None:
        """Do nothing."""
