"""Which method and batch size to use for a dataset: the predicted time of each, the advice, and a check of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cli import UserError
from ..interval import Interval
from ..measure.plan import Plan
from ..measure.work import Floats, ForwardSettings, memory_bytes, work_of
from ..prefilling.method import Method, dataset_bins
from ..prefilling.methods import BASELINE, METHODS
from ..prefilling.packing import Bins
from ..prefilling.shape import Shape
from ..report.cells import tells, times
from ..workload.batches import Batch, shuffled_batches
from .calibrate import Bench
from .cost import CostModel

CLOSE_TO_BEST = 0.05  # share of the throughput that is given up for batches that wait less
CHECK_REPEATS = 3


@dataclass(frozen=True)
class Choice:
    """A method at a batch size, and what is predicted for it over the whole dataset.

    Attributes:
        batches: indices of each batch's prompts; bins: its bins where the whole dataset was packed.
        lengths: tokens of each batch's prompts.
        seconds: predicted for each batch, float64 [batches].
        memory_mb: of the batch that needs most, a lower bound.
        speedup: full-batching's predicted time for the same prompts over this one's.
        spread: half of the 95 % interval of the speedup's logarithm.
    """

    method: Method
    batch_size: int
    batches: list[Batch]
    bins: Sequence[Bins | None]
    lengths: list[list[int]]
    seconds: Floats
    memory_mb: float
    speedup: float
    spread: float

    @property
    def prompts_per_s(self) -> float:
        """Throughput over the dataset."""
        return sum(map(len, self.lengths)) / float(self.seconds.sum())

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens per second over the dataset."""
        return sum(map(sum, self.lengths)) / float(self.seconds.sum())


# Of an interval that spans more than a table shows.
UNCERTAIN = "too uncertain to rely on; with recalibrate=true, while nothing else runs, it is calibrated anew"


def with_spread(speedup: float, spread: float) -> Interval:
    """An estimate with its 95 % interval, ``spread`` being half of that of the logarithm."""
    return Interval(speedup, speedup * float(np.exp(-spread)), speedup * float(np.exp(spread)))


def choices(plan: Plan, shape: Shape, model: CostModel, batch_sizes: Sequence[int]) -> list[Choice]:
    """Every method that the model knows at every batch size, full-batching first.

    Not serving engines, which batch by rules of their own, and not methods that were added.
    """
    settings = ForwardSettings.of(plan)
    others = [each for each in METHODS.values() if each.name != BASELINE and model.knows(each.name)]
    found: list[Choice] = []
    for batch_size in batch_sizes:
        baseline_s = 0.0
        for method in [METHODS[BASELINE], *others]:
            batches, bins = _batches(plan, method, batch_size)
            lengths = [plan.prompts.lengths[batch].tolist() for batch in batches]
            laid = list(zip(lengths, bins, strict=True))
            work = [work_of(shape, method, each, settings, own) for each, own in laid]
            needed = max(memory_bytes(shape, method, each, settings, own) for each, own in laid)
            seconds, spread = model.seconds(np.array(work)), 0.0
            if method.name == BASELINE:
                baseline_s = float(seconds.sum())
            else:
                spread = model.speedup_spread(method.name)
            speedup = baseline_s / float(seconds.sum())
            found.append(Choice(method, batch_size, batches, bins, lengths, seconds, needed / 2**20, speedup, spread))
    return found


def _batches(plan: Plan, method: Method, batch_size: int) -> tuple[list[Batch], Sequence[Bins | None]]:
    lengths = plan.prompts.lengths
    if method.packs_dataset:
        return dataset_bins(lengths, batch_size, plan.pack)
    batches = method.batches(shuffled_batches(len(lengths), batch_size, plan.config.seed), lengths, batch_size)
    return batches, [None] * len(batches)


def advise(found: Sequence[Choice], offline: bool, memory_mb: float | None) -> tuple[Choice, str]:
    """The choice to make, and sentences that say what to expect and why.

    The best method is the one with the highest throughput at any batch size; of its batch sizes the smallest within 5 %
    of that is taken, since every prompt of a batch waits for the whole batch.

    Args:
        offline: also consider methods that need the whole dataset before their first batch.
        memory_mb: leave out what needs more; None: nothing.

    Raises:
        UserError: nothing fits into ``memory_mb``.
    """
    asked = [one for one in found if offline or not one.method.needs_dataset]
    allowed = [one for one in asked if memory_mb is None or one.memory_mb <= memory_mb]
    if not allowed:
        least = np.ceil(min(one.memory_mb for one in asked))
        raise UserError(
            "memory_mb", f"{memory_mb:g} MB hold no batch", f"give {least:.0f} or more, or lower batch_sizes"
        )
    best = max(allowed, key=lambda one: one.prompts_per_s)
    enough = (1 - CLOSE_TO_BEST) * best.prompts_per_s
    close = [one for one in allowed if one.method == best.method and one.prompts_per_s >= enough]
    chosen = min(close, key=lambda one: one.batch_size)
    if chosen.method.name == BASELINE:
        words = [f"Use {BASELINE} with batch_size={chosen.batch_size}: no other method is expected to be faster."]
    else:
        ratio = with_spread(chosen.speedup, chosen.spread)
        known = "95 % interval" if tells(ratio.low, ratio.high) else UNCERTAIN
        words = [
            f"Use {chosen.method.name} with batch_size={chosen.batch_size}: expected to be {times(ratio)} as fast as "
            f"{BASELINE} at that size ({known})."
        ]
    if chosen.batch_size < best.batch_size:
        more = best.prompts_per_s / chosen.prompts_per_s - 1
        words.append(
            f"Batches of {best.batch_size} would serve {more:.1%} more prompts a second, but a first token would wait "
            f"{best.seconds.mean():.3g} s, not {chosen.seconds.mean():.3g} s."
        )
    elif chosen.batch_size > min(one.batch_size for one in allowed):
        words.append(f"Smaller batches would wait less, but lose more than {CLOSE_TO_BEST:.0%} of its throughput.")
    rivals = [
        one.method.name
        for one in allowed
        if one.batch_size == chosen.batch_size
        and one.method != chosen.method
        and np.log(chosen.speedup / one.speedup) < max(chosen.spread, one.spread)
    ]
    if rivals:
        words.append(f"The prediction does not tell it from {' and '.join(rivals)}.")
    if chosen.method.needs_dataset:
        words.append("It needs the whole dataset before its first batch.")
    return chosen, " ".join(words)


@dataclass(frozen=True)
class Checked:
    """Some batches of a choice, predicted and measured: seconds in total, and the speedup over full-batching on them.

    The speedup is None for full-batching and for methods with batches of their own, which hold other prompts.
    """

    choice: Choice
    predicted_s: float
    measured_s: float
    predicted_speedup: float | None
    measured_speedup: float | None

    @property
    def error(self) -> float:
        """Of the time, relative to the measured one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def speedup_error(self) -> float | None:
        """Of the speedup, relative to the measured one."""
        if self.predicted_speedup is None or self.measured_speedup is None:
            return None
        return self.predicted_speedup / self.measured_speedup - 1


def check(plan: Plan, bench: Bench, found: Sequence[Choice], most: int) -> list[Checked]:
    """Measure up to ``most`` batches of each choice, spread evenly over its own.

    Each batch runs once untimed; then all of a batch size run in turns, three times, of which the median counts.
    """
    checked = []
    for batch_size in sorted({one.batch_size for one in found}):
        group = [one for one in found if one.batch_size == batch_size]
        picked = [np.unique(((np.arange(most) + 0.5) / most * len(one.batches)).astype(int)) for one in group]
        runs = [
            (place, one.method, plan.token_ids(one.batches[number]), one.bins[number])
            for place, (one, numbers) in enumerate(zip(group, picked, strict=True))
            for number in numbers
        ]
        for _, *run in runs:
            bench.seconds(*run)
        taken = np.array([[bench.seconds(*run) for _, *run in runs] for _ in range(CHECK_REPEATS)])
        measured = np.bincount([place for place, *_ in runs], np.median(taken, axis=0))
        predicted = [float(one.seconds[numbers].sum()) for one, numbers in zip(group, picked, strict=True)]
        for place, one in enumerate(group):
            own = one.method.name == BASELINE or one.method.needs_dataset
            checked.append(
                Checked(
                    one,
                    predicted[place],
                    float(measured[place]),
                    None if own else predicted[0] / predicted[place],
                    None if own else float(measured[0] / measured[place]),
                )
            )
    return checked
