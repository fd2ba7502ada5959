"""Whether a measurement may be believed: the rules, each with its reason in words. Plain numbers in, words out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CLOCK_MOVED = 0.10  # share of the highest SM clock by which readings of one run may differ
UNSETTLED = 0.10  # share by which the first timed repeat may be slower than the slowest of the later ones
REPEATS_TO_SETTLE = 3  # fewer say nothing about whether the first was slow


@dataclass(frozen=True)
class Evidence:
    """What is known of one method's run; None or empty where it is not known, which is held against no one.

    Attributes:
        sm_clocks_mhz: lowest and highest reading of the GPU's multiprocessor clock.
        throttle_reasons: in words; harmless ones left out.
        pass_seconds: total time of each timed repeat, in their order.
        utilization_valid: whether utilization rests on enough averaging windows.
        tree_dirty: whether source files differ from the commit that is recorded.
        swapped_mb: how much of the process was swapped out during the run.
        quirks: measuring faults that were on for demonstration.
    """

    pass_seconds: Sequence[float]
    utilization_valid: bool
    sm_clocks_mhz: tuple[float, float] | None = None
    throttle_reasons: Sequence[str] = ()
    other_processes: int | None = None
    tree_dirty: bool | None = None
    swapped_mb: float | None = None
    quirks: str | None = None


def invalid_reasons(seen: Evidence) -> list[str]:
    """Why this measurement should not be relied upon; empty where nothing speaks against it."""
    reasons = []
    if seen.sm_clocks_mhz is not None:
        low, high = seen.sm_clocks_mhz
        if high > 0 and (high - low) / high > CLOCK_MOVED:
            reasons.append(f"the SM clock moved between {low:.0f} and {high:.0f} MHz")
    if seen.throttle_reasons:
        reasons.append(f"the GPU was throttled ({', '.join(seen.throttle_reasons)})")
    if seen.other_processes:
        count = seen.other_processes
        reasons.append(f"{count} other process{'es' if count > 1 else ''} on the GPU")
    if len(seen.pass_seconds) >= REPEATS_TO_SETTLE:
        # Than every later one: on a noisy machine one repeat or another is slow, and that is no matter of warm-up.
        slower = seen.pass_seconds[0] / max(seen.pass_seconds[1:]) - 1
        if slower > UNSETTLED:
            reasons.append(f"warm-up did not settle (the first repeat took {100 * slower:.0f} % longer)")
    if not seen.utilization_valid:
        reasons.append("too few utilization windows")
    if seen.tree_dirty:
        reasons.append("the source tree has uncommitted changes")
    if seen.swapped_mb is not None and seen.swapped_mb > 0:
        reasons.append(f"{seen.swapped_mb:.1f} MB of the process were swapped out")
    if seen.quirks:
        reasons.append(f"measured with faults on purpose ({seen.quirks})")
    return reasons
