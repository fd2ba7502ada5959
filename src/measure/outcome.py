"""What happens while a plan is carried out: engines, verification, passes, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cli import ran_out_of_memory, warn
from ..prefilling.method import Engine, Method
from ..prefilling.packing import Bins
from ..queueing.loop import Served
from ..workload.batches import Batch
from .compiling import Compiled
from .invariance import Invariance
from .memory import Peak
from .plan import Assignment, Plan
from .process import CpuUse
from .rates import Rates
from .sampler import Usage
from .verify import Verification


@dataclass
class Pass:
    """One timed pass of a method over all its batches."""

    samples: list[dict[str, Any]]
    wall_seconds: float
    usage: Usage
    peak: Peak
    cpu: CpuUse = field(default_factory=CpuUse)


@dataclass
class UsageLoop:
    """What was seen while a method's batches ran again and again, untimed, because its passes are too short."""

    usage: Usage
    seconds: float


@dataclass
class Outcome:
    """What became of one method: its passes, or why there are none."""

    assignment: Assignment
    engine: Engine | None = None  # while a comparison runs
    holds_mb: float = 0.0  # of a serving engine: tensors that it keeps on the GPU while others are measured
    attention: str | None = None
    elementwise: str | None = None  # what norms and rotary positions run on
    kernel: str | None = None  # of attention, as one profiled pass showed it
    attention_share: float | None = None  # of the time of that pass
    compiled: Compiled = field(default_factory=Compiled)  # before the timed passes
    compiled_timed: Compiled = field(default_factory=Compiled)  # within them
    invariance: Invariance | None = None
    verification: Verification = field(default_factory=Verification)
    verified_batches: set[int] = field(default_factory=set)
    passes: list[Pass] = field(default_factory=list)
    reshuffled: tuple[list[Batch], list[Bins] | None] | None = None  # of the current repeat, under own-shuffle
    loop: UsageLoop | None = None
    served: Served | None = None  # under load: what was served when
    status: str = "ok"
    reason: str | None = None

    @property
    def method(self) -> Method:
        """The method."""
        return self.assignment.method

    @property
    def batches(self) -> list[Batch]:
        """Its batches."""
        return self.reshuffled[0] if self.reshuffled else self.assignment.batches

    def batch(self, number: int) -> tuple[Batch, Bins | None]:
        """One of its batches, and that batch's bins where the whole dataset was packed."""
        return self.batches[number], self.bins[number] if self.bins else None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and width of each batch's forward."""
        return self.assignment.shapes

    @property
    def bins(self) -> list[Bins] | None:
        """Each batch's bins, where the whole dataset was packed."""
        return self.reshuffled[1] if self.reshuffled else self.assignment.bins

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Seconds of each sample, [repeats, batches]."""
        return np.array([[sample["seconds"] for sample in done.samples] for done in self.passes])

    def computes_unseen(self, device: str) -> bool:
        """Whether counters do not see what it does: those of a CPU are this process's, those of a GPU the card's."""
        return self.method.external and device == "cpu"

    def fail(self, status: str, reason: str) -> None:
        """Take the method out of the comparison; it keeps a row that says why."""
        self.status, self.reason, self.passes = status, reason, []
        warn(f"{self.method.name}: {status}, {reason}")


# What ends a method's measurement, and becomes its row. Torch's own error of memory is a RuntimeError.
FAILURES = (RuntimeError, MemoryError)


def status_of(error: BaseException) -> tuple[str, str]:
    """What became of a method that ended in an error, as the status of its row and the reason."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return ("oom", text) if ran_out_of_memory(error) else ("error", f"{type(error).__name__}: {text}")


@dataclass
class Run:
    """A plan while it is carried out.

    Attributes:
        outcomes: what became of each method, in the order of the plan.
        ideal: what became of the dense forward that is timed beside them; None where it was not asked for.
        rates: of this machine, once they are measured.
        split: which layers are on which GPU, once they are loaded.
    """

    plan: Plan
    outcomes: list[Outcome] = field(init=False)
    ideal: Outcome | None = field(init=False)
    rates: Rates | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        self.outcomes = [Outcome(each) for each in self.plan.methods]
        self.ideal = Outcome(self.plan.ideal) if self.plan.ideal else None

    def held_beside_mb(self, outcome: Outcome) -> float:
        """What the engines of other methods keep on the GPU."""
        return sum(each.holds_mb for each in self.outcomes if each is not outcome)

    @property
    def timed(self) -> list[Outcome]:
        """The outcomes whose batches are timed, in turns."""
        return [*self.outcomes, *([self.ideal] if self.ideal else [])]
