"""The counters of this process, as Linux sees it: utilization of its cores, resident memory, swap."""

from __future__ import annotations

import os
import time

from src.measure.nvml import MB, Reading


class ProcessCounters:
    """This process on a CPU: utilization of the cores it may use, and its resident memory."""

    source = "process"
    window_s = 0.0  # a reading averages over the time since the one before, nothing earlier

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._last = (time.perf_counter(), time.process_time())

    def read(self) -> Reading:
        """Utilization since the read before (all threads, 100 = every core busy) and resident memory."""
        now = (time.perf_counter(), time.process_time())
        elapsed, busy = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        reading = Reading()
        if elapsed > 0:
            reading.values["utilization_pct"] = min(100.0, 100 * busy / (elapsed * self.cores))
        if (resident := resident_mb()) is None:
            reading.gaps["process_memory_mb"] = "the system has no /proc/self/statm"
        else:
            reading.values["process_memory_mb"] = resident
        return reading

    def windows(self, seconds: float, readings: int) -> int:
        """Each reading is an average of its own since the one before."""
        return readings


def resident_mb() -> float | None:
    """Resident memory of this process in MB (2**20 bytes), None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    except (OSError, ValueError, IndexError):
        return None


def status_mb(name: str) -> float | None:
    """A line of /proc/self/status in MB (``VmHWM``, ``VmSwap``), None where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) / 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
