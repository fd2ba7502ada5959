"""The counters of one NVIDIA GPU, read through the driver's management library; what does not answer is a gap."""

from __future__ import annotations

import functools
import operator
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

MB = 1024 * 1024
WINDOW_S = 1.0  # NVML averages utilization over 1/6 to 1 s, by GPU: the longest is counted

# The bits of nvmlDeviceGetCurrentClocksEventReasons, in words.
CLOCK_EVENT_REASONS = {
    0x1: "idle",
    0x2: "applications clock setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability limit",
}
HARMLESS_REASONS = 0x1 | 0x2  # nothing to do, and clocks as somebody set them: neither slows a GPU down unasked


@dataclass
class Reading:
    """One reading: the counters that answered, and for each of the others why it did not."""

    values: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)


def throttle_names(mask: int) -> tuple[str, ...]:
    """What slows the clocks down, in words, from the driver's bits; a bit that is not known here is named by its hex.

    >>> throttle_names(0x1 | 0x40)
    ('hardware thermal slowdown',)
    """
    slowing = mask & ~HARMLESS_REASONS
    bits = [1 << place for place in range(slowing.bit_length()) if slowing >> place & 1]
    return tuple(CLOCK_EVENT_REASONS.get(bit, f"reason {bit:#x}") for bit in bits)


class NvmlCounters:
    """One GPU, found by UUID because CUDA_VISIBLE_DEVICES renumbers devices, as the NVIDIA driver sees it.

    Args:
        uuid: as torch gives it, or with its prefix. torch leaves the prefix out for whole GPUs and MIG slices alike,
            so both are tried. A slice supports fewer calls; the others become gaps.

    Raises:
        pynvml.NVMLError: no driver, or no such GPU.
    """

    source = "nvml"
    window_s = WINDOW_S

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self.uuid, self._handle = self._find(uuid)
        self.gaps: dict[str, str] = {}
        self.driver = self._once("driver", pynvml.nvmlSystemGetDriverVersion)
        limit_mw = self._once("power_limit_w", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle))
        self.power_limit_w = None if limit_mw is None else float(limit_mw) / 1000
        # What each call fills, so that its failure leaves exactly those fields out.
        self._calls: dict[tuple[str, ...], Callable[[], tuple[float | str, ...]]] = {
            ("utilization_pct", "memory_utilization_pct"): self._utilization,
            ("device_memory_mb",): lambda: (pynvml.nvmlDeviceGetMemoryInfo(self._handle).used / MB,),
            ("process_memory_mb", "other_processes", "other_processes_mb"): self._processes,
            ("power_w",): lambda: (pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,),
            ("energy_j",): lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000,),
            ("sm_clock_mhz",): lambda: (pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM),),
            ("memory_clock_mhz",): lambda: (pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_MEM),),
            ("temperature_c",): lambda: (pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU),),
            ("clock_event_reasons",): self._clock_event_reasons,
        }

    def read(self) -> Reading:
        """Every counter that answers, and the reason of each that does not.

        Units are in the names; ``energy_j`` counts from when the driver was loaded, ``clock_event_reasons`` are bits.
        """
        reading = Reading()
        for names, call in self._calls.items():
            try:
                answers = call()
            except Exception as error:  # a driver may fail in ways of its own; telemetry must not end a measurement
                reading.gaps.update(dict.fromkeys(names, str(error) or type(error).__name__))
                continue
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, str):
                    reading.gaps[name] = answer
                else:
                    reading.values[name] = float(answer)
        return reading

    def windows(self, seconds: float, readings: int) -> int:
        """Readings within one averaging window of the driver are not independent."""
        return min(readings, int(seconds / WINDOW_S))

    def _find(self, uuid: str) -> tuple[str, object]:
        if uuid.startswith(("GPU-", "MIG-")):
            return uuid, self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        try:
            return f"GPU-{uuid}", self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except self._nvml.NVMLError:
            return f"MIG-{uuid}", self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def _once(self, name: str, call: Callable[[], str | float]) -> str | float | None:
        try:
            return call()
        except Exception as error:
            self.gaps[name] = str(error) or type(error).__name__
            return None

    def _utilization(self) -> tuple[float | str, ...]:
        rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        return rates.gpu, rates.memory

    def _processes(self) -> tuple[float | str, ...]:
        """This process's memory, the number of others, and theirs; a reason in place of a number that is unknown."""
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        # A serving engine that this process has started, and that stands still while others are timed, is no other.
        found = [process for process in found if process.pid == os.getpid() or not _descends(process.pid)]
        own = [process for process in found if process.pid == os.getpid()]
        if not own:
            # Then which are others, and whether all are listed, cannot be told either.
            why = "the driver does not list this process (a container with its own process numbers?)"
            return why, why, why
        others = [process.usedGpuMemory for process in found if process.pid != os.getpid()]
        unknown = "the driver does not say how much memory a process uses"
        own_mb = unknown if own[0].usedGpuMemory is None else own[0].usedGpuMemory / MB
        return own_mb, len(others), unknown if None in others else sum(others) / MB

    def _clock_event_reasons(self) -> tuple[float | str, ...]:
        nvml = self._nvml
        try:
            return (nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle),)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
            return (nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle),)  # its name in older drivers


def _descends(pid: int) -> bool:
    """Whether a process was started by this one, or by one that it started (Linux; elsewhere none counts as such)."""
    for _ in range(16):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])  # its parent, behind a name that may hold anything
        except (OSError, ValueError, IndexError):
            return False
        if pid == os.getpid():
            return True
    return False


def _all_bits(masks: Iterable[float]) -> float:
    return float(functools.reduce(operator.or_, map(int, masks)))


class SplitCounters:
    """Several GPUs that a model is split over, as one: memory, power and energy are summed, utilization is the mean.

    Of clocks the lowest counts, of temperatures the highest, and what slows one of them down slows the model.
    """

    source = "nvml"
    window_s = WINDOW_S
    _TOGETHER: ClassVar[dict[str, Callable[[list[float]], float]]] = {
        "utilization_pct": statistics.fmean,
        "memory_utilization_pct": statistics.fmean,
        "sm_clock_mhz": min,
        "memory_clock_mhz": min,
        "temperature_c": max,
        "clock_event_reasons": _all_bits,
    }

    def __init__(self, parts: Sequence[NvmlCounters]) -> None:
        self._parts = parts

    def read(self) -> Reading:
        """One reading of all; a counter that one of them does not give is a gap."""
        readings, together = [part.read() for part in self._parts], Reading()
        for name in dict.fromkeys(name for reading in readings for name in reading.values):
            if all(name in reading.values for reading in readings):
                together.values[name] = self._TOGETHER.get(name, sum)([reading.values[name] for reading in readings])
        for reading in readings:
            together.gaps = reading.gaps | together.gaps
        return together

    def windows(self, seconds: float, readings: int) -> int:
        """As of one GPU."""
        return self._parts[0].windows(seconds, readings)


class NoCounters:
    """A GPU whose driver does not answer: every field is a gap, with the reason."""

    source = "none"
    window_s = 0.0

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self) -> Reading:
        """Nothing, and why."""
        return Reading(gaps={"all counters": self.reason})

    def windows(self, seconds: float, readings: int) -> int:
        """None."""
        return 0
