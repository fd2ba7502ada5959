"""Whether a measurement may be relied upon: the rules, each with its reason in words.

What a reader should know, and what makes no run invalid, is a note: a data-centre GPU under full load is held by its
power cap, and right after idling its clock takes a moment to rise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..records.row import ON_PURPOSE
from .process import BUSY, CpuUse

CLOCK_MOVED = 0.10  # share of the highest clock by which readings of one run may differ
STOLEN = 0.05  # share of the cores' time that the host of a virtual machine may give to others
THROTTLED = 0.01  # share in which the limit of a control group may hold the process; while it does, all threads stand
# Share by which the first timed repeat may be slower than the slowest of the later ones. By chance, where passes differ
# by 5 % as on two shared cores, the first of three is 10 % slower in 3 of 100 runs, and 15 % in 1 of 200.
UNSETTLED = 0.15
REPEATS_TO_SETTLE = 3  # fewer say nothing about whether the first was slow
CHANGED_TREE = "the source tree has uncommitted changes"
ORDINARY = ("software power cap",)  # what holds clocks down in a GPU's ordinary state under full load


@dataclass(frozen=True)
class Evidence:
    """What is known of one method's run. None or empty: not known; missing evidence never makes a run invalid.

    Attributes:
        sm_clocks_mhz: lowest and highest reading of the GPU's multiprocessor clock within the timed passes.
        rising_clock_mhz: the lowest reading at the start of a pass, before the clock had risen after idling.
        throttle_reasons: in words; harmless ones left out.
        pass_seconds: total time of each timed repeat, in their order.
        utilization_valid: whether utilization rests on enough averaging windows; without them it is left out, and the
            times stand.
        cpu: what others took of the cores, where the work was done on a CPU.
        cpu_clocks_mhz: lowest and highest mean clock of the timed passes, on a CPU.
        tree_dirty: whether source files differ from the commit that is recorded.
        swapped_mb: how much of the process was swapped out during the run.
        faults: measuring faults that were on for demonstration.
    """

    pass_seconds: Sequence[float]
    utilization_valid: bool
    sm_clocks_mhz: tuple[float, float] | None = None
    rising_clock_mhz: float | None = None
    throttle_reasons: Sequence[str] = ()
    other_processes: int | None = None
    tree_dirty: bool | None = None
    swapped_mb: float | None = None
    faults: str | None = None
    cpu: CpuUse = field(default_factory=CpuUse)
    cpu_clocks_mhz: tuple[float, float] | None = None


def invalid_reasons(seen: Evidence) -> list[str]:
    """Why this measurement should not be relied upon; empty where nothing speaks against it."""
    reasons = []
    if (moved := _sm_clock_moved(seen)) and not _held_by_the_cap_alone(seen):
        reasons.append(moved)
    if slowed := [reason for reason in seen.throttle_reasons if reason not in ORDINARY]:
        reasons.append(f"the GPU was throttled ({', '.join(slowed)})")
    if seen.other_processes:
        count = seen.other_processes
        reasons.append(f"{count} other process{'es' if count > 1 else ''} on the GPU")
    if len(seen.pass_seconds) >= REPEATS_TO_SETTLE:
        # Slower than every later one: on a noisy machine some repeat is always slow, and warm-up is not to blame.
        slower = seen.pass_seconds[0] / max(seen.pass_seconds[1:]) - 1
        if slower > UNSETTLED:
            reasons.append(f"warm-up did not settle (the first repeat took {100 * slower:.0f} % longer)")
    reasons += _taken(seen.cpu)
    if seen.cpu_clocks_mhz is not None and _moved(*seen.cpu_clocks_mhz):
        low, high = seen.cpu_clocks_mhz
        reasons.append(f"the processor's clock moved between {low:.0f} and {high:.0f} MHz")
    if seen.tree_dirty:
        reasons.append(CHANGED_TREE)
    if seen.swapped_mb is not None and seen.swapped_mb > 0:
        reasons.append(f"{seen.swapped_mb:.1f} MB of the process were swapped out")
    if seen.faults:
        reasons.append(f"{ON_PURPOSE} ({seen.faults})")
    return reasons


def _taken(cpu: CpuUse) -> list[str]:
    """What others took of the cores, where it is more than a measurement tolerates."""
    said = []
    for share, most, what in (
        (cpu.other, BUSY, "other processes used {} of the processor meanwhile"),
        (cpu.stolen, STOLEN, "the host gave {} of the processor's time to others"),
        (cpu.throttled, THROTTLED, "the control group's limit held the process for {} of the time"),
    ):
        if cpu.surely(share) > most:
            said.append(what.format(f"{100 * (share or 0.0):.0f} %"))
    return said


def notes_of(seen: Evidence) -> list[str]:
    """What a reader should know of this measurement although it does not make it invalid."""
    notes = [f"the GPU was held by its {reason}" for reason in seen.throttle_reasons if reason in ORDINARY]
    if (moved := _sm_clock_moved(seen)) and _held_by_the_cap_alone(seen):
        notes.append(moved)
    if not seen.utilization_valid:
        notes.append("too few averaging windows for a utilization")
    if seen.rising_clock_mhz is not None and seen.sm_clocks_mhz is not None:
        low, high = seen.rising_clock_mhz, seen.sm_clocks_mhz[1]
        if _moved(low, high):
            notes.append(f"at the start of a pass the SM clock was still rising from {low:.0f} to {high:.0f} MHz")
    return notes


def _sm_clock_moved(seen: Evidence) -> str | None:
    """How far the GPU's clock moved within the timed passes, in words; None where it hardly did, or is not known."""
    if seen.sm_clocks_mhz is None or not _moved(*seen.sm_clocks_mhz):
        return None
    low, high = seen.sm_clocks_mhz
    return f"the SM clock moved between {low:.0f} and {high:.0f} MHz"


def _held_by_the_cap_alone(seen: Evidence) -> bool:
    """Whether what moved the clock was the load itself: it is lowered until the power stays within the card's limit.

    A method that keeps an H100 busy gets 1,755 MHz where one that leaves it idle now and then gets 1,980: that is what
    it gets in service, too.
    """
    return bool(seen.throttle_reasons) and all(reason in ORDINARY for reason in seen.throttle_reasons)


def _moved(low_mhz: float, high_mhz: float) -> bool:
    return high_mhz > 0 and (high_mhz - low_mhz) / high_mhz > CLOCK_MOVED
