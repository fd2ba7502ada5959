"""Linux's counters of this process and of the cores it runs on: use, memory, and what other processes take."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .nvml import MB, Reading

BUSY = 0.1  # a measurement is invalid if other processes take more than this share of the cores' time
TICK_S = 0.01  # the kernel counts the time of cores in steps of this length
PROC, CGROUP, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


class ProcessCounters:
    """This process on a CPU: utilization of the cores it may use, its resident memory, and the cores' clock."""

    source = "process"
    window_s = 0.0  # a reading averages over the time since the one before, nothing earlier

    def __init__(self) -> None:
        self.cores = len(allowed_cores())
        self._last = (time.perf_counter(), time.process_time())
        files = (CPUS / f"cpu{core}" / "cpufreq" / "scaling_cur_freq" for core in allowed_cores())
        self._clocks = [file for file in files if file.exists()]

    def read(self) -> Reading:
        """Utilization since the read before (all threads, 100 = every core busy), resident memory and clock."""
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
        try:
            # Idle cores lower their clock: the fastest one shows the clock of those that work.
            mhz = max((int(file.read_text(encoding="ascii")) / 1000 for file in self._clocks), default=None)
        except (OSError, ValueError) as error:
            reading.gaps["cpu_clock_mhz"] = f"{type(error).__name__}: {error}"
        else:
            if mhz is not None:
                reading.values["cpu_clock_mhz"] = mhz
        return reading

    def windows(self, seconds: float, readings: int) -> int:
        """Each reading is an average of its own since the one before."""
        return readings


@dataclass(frozen=True)
class CpuTimes:
    """Clocks of a moment, in seconds; None where the system does not tell.

    Attributes:
        at_s: on the clock of the wall.
        own_s: that this process has computed, over all its threads.
        busy_s: that the cores which it may use have computed, for anyone.
        stolen_s: that the host of a virtual machine has given to others while these cores wanted to compute.
        throttled_s: that a limit of the control group has held processes, which were ready to compute.
    """

    at_s: float
    own_s: float
    busy_s: float | None
    stolen_s: float | None
    throttled_s: float | None

    @classmethod
    def now(cls) -> CpuTimes:
        """Read them."""
        busy_s, stolen_s = _core_seconds()
        return cls(time.perf_counter(), time.process_time(), busy_s, stolen_s, _throttled_s())


@dataclass(frozen=True)
class CpuUse:
    """What others took of the cores in one span of time, or in several: sums of seconds.

    Attributes:
        cores_s: time of all cores together.
        other_s, stolen_s, throttled_s: as in ``CpuTimes``, ``other_s`` being what is busy and not this process; None
            where the system does not tell.
        unsure_s: by how much they may be off, for the kernel counts in steps.
    """

    cores_s: float = 0.0
    other_s: float | None = 0.0
    stolen_s: float | None = 0.0
    throttled_s: float | None = 0.0
    unsure_s: float = 0.0

    @classmethod
    def since(cls, before: CpuTimes) -> CpuUse:
        """From then to now."""
        now, cores = CpuTimes.now(), len(allowed_cores())
        busy_s, stolen_s = _less(now.busy_s, before.busy_s), _less(now.stolen_s, before.stolen_s)
        return cls(
            cores * (now.at_s - before.at_s),
            None if busy_s is None else busy_s - (now.own_s - before.own_s),
            stolen_s,
            _less(now.throttled_s, before.throttled_s),
            cores * TICK_S,
        )

    def __add__(self, other: CpuUse) -> CpuUse:
        """Both spans together."""
        return CpuUse(
            self.cores_s + other.cores_s,
            _sum(self.other_s, other.other_s),
            _sum(self.stolen_s, other.stolen_s),
            _sum(self.throttled_s, other.throttled_s),
            self.unsure_s + other.unsure_s,
        )

    @property
    def other(self) -> float | None:
        """Share of the cores' time that other processes took, 0 to 1."""
        return self._share(self.other_s)

    @property
    def stolen(self) -> float | None:
        """Share that the host gave to others."""
        return self._share(self.stolen_s)

    @property
    def throttled(self) -> float | None:
        """Share in which a limit held processes back."""
        return self._share(self.throttled_s)

    def surely(self, share: float | None) -> float:
        """The share less the largest error of the kernel's ticks of 10 ms; 0 where it is not known."""
        return 0.0 if share is None or not self.cores_s else max(0.0, share - self.unsure_s / self.cores_s)

    def _share(self, seconds: float | None) -> float | None:
        return None if seconds is None or not self.cores_s else min(1.0, max(0.0, seconds / self.cores_s))


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _less(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _core_seconds() -> tuple[float | None, float | None]:
    """Seconds that the cores which this process may use were busy, and that were stolen from them."""
    wanted, busy, stolen = {f"cpu{core}" for core in allowed_cores()}, 0, 0
    try:
        for line in (PROC / "stat").read_text(encoding="ascii").splitlines():
            name, *ticks = line.split()
            if name in wanted:
                user, nice, system, _, _, interrupts, soft, steal = map(int, ticks[:8])
                busy, stolen = busy + user + nice + system + interrupts + soft, stolen + steal
                wanted.discard(name)
    except (OSError, ValueError):
        return None, None
    hertz = os.sysconf("SC_CLK_TCK")
    return (None, None) if wanted else (busy / hertz, stolen / hertz)


def _throttled_s() -> float | None:
    """Seconds for which the process's control group was held by its limit, of either version of control groups."""
    found: dict[str, float] = {}
    try:
        for folders in _groups("cpu"):
            if own := next((folder for folder in folders if (folder / "cpu.stat").is_file()), None):
                found |= _numbers(own / "cpu.stat")
    except (OSError, ValueError):
        return None
    if "throttled_usec" in found:
        return found["throttled_usec"] / 1e6
    return found["throttled_time"] / 1e9 if "throttled_time" in found else None


def _groups(controller: str) -> Iterator[list[Path]]:
    """The folders of this process's control group, of either version: its own first, then those that it lies in.

    A container sees its own group at the top, whatever the path of the group is called outside.
    """
    for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = CGROUP / controllers
            own = top / path.lstrip("/")
            yield [own, *(above for above in own.parents if above.is_relative_to(top))]


def _numbers(file: Path) -> dict[str, float]:
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return {name: float(value) for name, value in lines}


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


def available_mb() -> float | None:
    """Memory that this process could still take without swapping, in MB, None where the system does not say.

    It is what the machine has, or what the process's control group leaves, as of a container or a job of SLURM's.
    """
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        of_machine = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except OSError:
        return None
    if of_machine is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        left = [_left_mb(folder) for folders in _groups("memory") for folder in folders]
        return min([of_machine, *(each for each in left if each is not None)])
    return of_machine


def _left_mb(group: Path) -> float | None:
    """What a control group's limit leaves, in MB; None where it has none. Cached files give way, and do not count."""
    for limit, used, cached in (("memory.max", "memory.current", "inactive_file"),
                                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):  # fmt: skip
        if (group / limit).is_file() and (most := (group / limit).read_text(encoding="ascii").strip()) != "max":
            held = int((group / used).read_text(encoding="ascii")) - _numbers(group / "memory.stat").get(cached, 0.0)
            return max(0.0, (int(most) - held) / MB)
    return None
