"""A thread that reads memory and utilization while batches are timed: NVML where there is a GPU, else the process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

FIELDS = ("utilization_pct", "memory_mb", "power_w", "sm_clock_mhz", "memory_clock_mhz")
VALID_WINDOWS = 5
NVML_WINDOW_S = 1.0  # NVML averages utilization over 1/6 to 1 s, by GPU: the longest is counted
MB = 1024 * 1024


@dataclass(frozen=True)
class Usage:
    """What was seen in a span of time; None where a counter gave nothing.

    Attributes:
        windows: independent averaging windows of the utilization counter within the span.
        source: ``nvml``, ``process`` or ``none``.
    """

    max_utilization_pct: float | None
    mean_utilization_pct: float | None
    max_memory_mb: float | None
    mean_power_w: float | None
    mean_sm_clock_mhz: float | None
    windows: int
    source: str

    @property
    def valid(self) -> bool:
        """Whether utilization rests on enough windows to be believed."""
        return self.mean_utilization_pct is not None and self.windows >= VALID_WINDOWS


class ProcessCounters:
    """This process on a CPU: utilization of the cores it may use, and its resident memory."""

    source = "process"

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._last = (time.perf_counter(), time.process_time())

    def read(self) -> dict[str, float]:
        """Utilization since the read before (all threads, 100 = every core busy) and resident memory."""
        now = (time.perf_counter(), time.process_time())
        elapsed, busy = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        reading = {"utilization_pct": min(100.0, 100 * busy / (elapsed * self.cores))} if elapsed > 0 else {}
        if (resident := resident_mb()) is not None:
            reading["memory_mb"] = resident
        return reading

    def windows(self, seconds: float, readings: int) -> int:
        """Each reading is an average of its own since the one before."""
        return readings


class NvmlCounters:
    """One GPU, found by UUID because CUDA_VISIBLE_DEVICES renumbers devices, as the NVIDIA driver sees it.

    Raises:
        pynvml.NVMLError: no driver, or no such GPU.
    """

    source = "nvml"

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        self.gaps: dict[str, str] = {}
        self.driver = str(pynvml.nvmlSystemGetDriverVersion())
        self.power_limit_w = self._call(
            "power_limit_w", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000
        )

    def read(self) -> dict[str, float]:
        """Every counter that answers; one that does not is left out, and its reason kept in ``gaps``."""
        nvml, handle = self._nvml, self._handle
        calls: dict[str, Callable[[], float]] = {
            "utilization_pct": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_mb": self._process_memory_mb,
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        }
        values = {name: self._call(name, call) for name, call in calls.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _process_memory_mb(self) -> float:
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return process.usedGpuMemory / MB
        raise LookupError("the driver does not list this process (a container with its own process numbers?)")

    def _call(self, name: str, call: Callable[[], float]) -> float | None:
        try:
            return float(call())
        except (self._nvml.NVMLError, LookupError) as error:
            self.gaps.setdefault(name, str(error))
            return None

    def windows(self, seconds: float, readings: int) -> int:
        """Readings within one averaging window of the driver are not independent."""
        return min(readings, int(seconds / NVML_WINDOW_S))


class NoCounters:
    """A GPU whose driver does not answer: every field is a gap, with the reason."""

    source = "none"

    def __init__(self, reason: str) -> None:
        self.gaps = dict.fromkeys(FIELDS, reason)

    def read(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def windows(self, seconds: float, readings: int) -> int:
        """None."""
        return 0


def counters_for(device: torch.device) -> ProcessCounters | NvmlCounters | NoCounters:
    """The counters that exist for ``device``."""
    if device.type != "cuda":
        return ProcessCounters()
    try:
        return NvmlCounters(str(torch.cuda.get_device_properties(device).uuid))
    except Exception as error:  # pynvml missing, no driver library, no such UUID: the run goes on without telemetry
        return NoCounters(f"{type(error).__name__}: {error}")


@dataclass
class Sampler:
    """Reads ``counters`` every ``interval_s`` seconds in a thread, from ``with`` entry to exit."""

    counters: Any
    interval_s: float
    _readings: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    failure: str | None = None

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.interval_s):
                self._readings.append((time.perf_counter(), self.counters.read()))
        except Exception as error:  # a counter's failure ends telemetry, never the measurement
            self.failure = f"{type(error).__name__}: {error}"

    def usage(self, start_s: float, end_s: float) -> Usage:
        """What was read between two readings of ``time.perf_counter``."""
        within = [reading for at, reading in list(self._readings) if start_s <= at <= end_s]
        values = {name: [reading[name] for reading in within if name in reading] for name in FIELDS}

        def mean(name: str) -> float | None:
            return sum(values[name]) / len(values[name]) if values[name] else None

        utilization = values["utilization_pct"]
        return Usage(
            max_utilization_pct=max(utilization, default=None),
            mean_utilization_pct=mean("utilization_pct"),
            max_memory_mb=max(values["memory_mb"], default=None),
            mean_power_w=mean("power_w"),
            mean_sm_clock_mhz=mean("sm_clock_mhz"),
            windows=self.counters.windows(end_s - start_s, len(utilization)),
            source=self.counters.source,
        )


def resident_mb() -> float | None:
    """Resident memory of this process in MB (2**20 bytes), None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    except OSError:
        return None
