"""Which measurements of two sources are the same measurement, and how their times compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .. import stats
from ..prefilling.methods import BASELINE, method_of
from ..records.groups import place_of
from ..records.row import HOW, WORK, Row, batches_are_draws, key, parts, value_of
from .sources import Measurement, Source

# What tells two measurements apart, in the order in which a reader would ask. Some are not matched themselves, but say
# why the workloads or the models differ. What identifies a measurement and is not named here comes after these.
ASKED = (
    "metric", "protocol", "model", "weights_source", "model_detail", "model_hash", "dataset", "dataset_source",
    "dataset_detail", "dataset_max_tokens", "loadbit", "dtype", "forward", "max_tokens_per_forward", "packing",
    "faults", "memory_limit_mb", "num_prompts", "batch_size", "seed",
)  # fmt: skip
MATCHED = parts(WORK, HOW)
TOLD = tuple(dict.fromkeys([*ASKED, *(name for name in MATCHED if name != "method")]))
# What a run decides by itself from the machine or the network, unless a setting says it.
DECIDED = {"dtype": "dtype", "weights_source": "model.weights", "dataset_source": "dataset.source"}
# These are unknown for a method that failed before its model was looked at.
UNKNOWN = (
    "weights_source", "model_detail", "model_hash", "dataset_source", "dtype", "forward", "max_tokens_per_forward",
    "packing", "faults", "workload_fingerprint",
)  # fmt: skip
FAILURES = (
    "oom",
    "timeout",
    "error",
    "incorrect",
)  # not: gated, skipped, which speak of accounts and what is installed


@dataclass(frozen=True)
class Pair:
    """The same measurement in the reference and in another source.

    Attributes:
        ratio: time of the reference over time of the other: above 1, the other is faster. None where either failed.
        speedups: over full-batching, in the reference and in the other; None where it is not known.
        change: the other's speedup over the reference's.
        paired: the ratio is from the samples of the same batches; else from the intervals of both means.
    """

    source: Source
    reference: Measurement
    other: Measurement
    ratio: stats.Interval | None = None
    speedups: tuple[stats.Interval | None, stats.Interval | None] = (None, None)
    change: stats.Interval | None = None
    paired: bool = False

    @property
    def row(self) -> Row:
        """The row that names what was measured: a method that failed early does not know it whole."""
        return self.reference.row if self.reference.row.workload_fingerprint else self.other.row

    def slower_by(self, share: float) -> bool:
        """Whether the whole interval of the other's time over the reference's lies beyond 1 + ``share``.

        Without an interval the ratio itself counts: a check that nothing could fail would be none.
        """
        if self.ratio is None:
            return False
        return (self.ratio.high if self.has_interval else self.ratio.value) < 1 / (1 + share)

    @property
    def has_interval(self) -> bool:
        """Whether the ratio has one; of a single batch measured once there is none."""
        return self.ratio is not None and not math.isnan(self.ratio.high)

    @property
    def doubted(self) -> bool:
        """Whether something speaks against relying on the measurement of either side."""
        return self.reference.row.doubted or self.other.row.doubted

    @property
    def fails_now(self) -> bool:
        """Whether the reference has a time and the other failed."""
        return self.reference.seconds is not None and self.other.row.status in FAILURES


@dataclass(frozen=True)
class Unmatched:
    """A measurement of ``source`` that ``other`` has nothing to compare with, and why."""

    source: Source
    other: Source
    measurement: Measurement
    reason: str


@dataclass
class Matching:
    """Every measurement of the sources, matched or not; the first source is the reference."""

    sources: Sequence[Source]
    pairs: list[Pair] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)


def compare(sources: Sequence[Source]) -> Matching:
    """Match each source with the first, and compare the times of what matches."""
    reference, found = sources[0], Matching(sources)
    for other in sources[1:]:
        left = sorted(other.measurements, key=_place)
        for measurement in sorted(reference.measurements, key=_place):
            twin = _twin(measurement, left)
            if twin is not None:
                left.remove(twin)
                found.pairs.append(_pair(reference, measurement, other, twin))
            else:
                found.unmatched.append(
                    Unmatched(reference, other, measurement, _reason(measurement, other.measurements))
                )
        for measurement in left:
            found.unmatched.append(
                Unmatched(other, reference, measurement, _reason(measurement, reference.measurements))
            )
    return found


def group_of(row: Row) -> tuple[object, ...]:
    """Equal for measurements that stand in one table: all that is matched but the method, and how it works."""
    return key(row, WORK)


def _place(measurement: Measurement) -> tuple[object, ...]:
    row = measurement.row
    return (*map(str, group_of(row)), place_of(row.method), str(row.packing), str(row.forward))


def _twin(measurement: Measurement, candidates: Sequence[Measurement]) -> Measurement | None:
    """The measurement that matches."""
    return next((each for each in candidates if not set(_differing(measurement, each)) & set(MATCHED)), None)


def _differing(a: Measurement, b: Measurement) -> list[str]:
    """The columns that differ, of those that both know."""
    planned = bool(a.row.workload_fingerprint and b.row.workload_fingerprint)
    names = ["method", *(name for name in TOLD if planned or name not in UNKNOWN)]
    unknown = a.unknown | b.unknown
    different = [name for name in names if name not in unknown and value_of(a.row, name) != value_of(b.row, name)]
    if None in (a.row.model_hash, b.row.model_hash):  # older files tell models apart by what they are called
        different = [name for name in different if name != "model_hash"]
        different = ["model_hash" if name == "model_detail" else name for name in different]
    return different


def _reason(measurement: Measurement, candidates: Sequence[Measurement]) -> str:
    """In what the nearest of the other side's measurements differs."""
    row = measurement.row
    if twin := _twin(measurement, candidates):
        return f"{twin.row.status} there"  # a failure that was paired already
    of_method = [candidate for candidate in candidates if candidate.row.method == row.method]
    if not of_method:
        return "not measured there"
    nearest = min(of_method, key=lambda other: len(set(_differing(measurement, other)) & set(MATCHED)))
    name = _differing(measurement, nearest)[0]
    here, there = (_said(value_of(each, name)) for each in (row, nearest.row))
    if setting := DECIDED.get(name):
        return f"{name} differs: {here}, {there} (set {setting} on both)"
    return f"{name}: {here} here, {there} there"


def _said(value: object) -> str:
    return "none" if value is None or value == "" else f"{value}"


def _pair(reference: Source, a: Measurement, other: Source, b: Measurement) -> Pair:
    here, there = _speedup(a, reference), _speedup(b, other)
    if a.seconds is None or b.seconds is None:
        return Pair(other, a, b, speedups=(here, there))
    ratio, paired = _ratio(a, b, batches_are_draws(a.row))
    change = None
    if here is not None and there is not None:
        bases = _beside(a, reference), _beside(b, other)
        own = _samples(a), _samples(b)
        if paired and bases[0] is not None and bases[1] is not None and own[0] is not None and own[1] is not None:
            change = stats.speedup_between_runs((bases[0], own[0]), (bases[1], own[1]), batches_are_draws(a.row))
        else:
            change = stats.ratio_of_intervals(there, here)
    return Pair(other, a, b, ratio, (here, there), change, paired)


def _ratio(a: Measurement, b: Measurement, draws: bool) -> tuple[stats.Interval, bool]:
    """Time of ``a`` over time of ``b``, two runs of their own, and whether from their samples.

    Args:
        draws: whether both have the same batches, each a draw like any other.
    """
    samples = _samples(a), _samples(b)
    unlike = samples[0] is None or samples[1] is None or (draws and samples[0].shape[1] != samples[1].shape[1])
    if unlike or a.row.arrivals:  # under load batches form by themselves
        means = [measurement.row.interval(measurement.row.time_column) for measurement in (a, b)]
        assert means[0] is not None
        assert means[1] is not None
        found = stats.ratio_of_intervals(means[0], means[1])
        if not a.row.arrivals and 1 in (a.row.repeats, b.row.repeats):  # which tells nothing of a run's drift
            found = replace(found, low=math.nan, high=math.nan)
        return found, False
    assert samples[0] is not None
    assert samples[1] is not None
    return stats.between_runs(samples[0], samples[1], draws), True


def _samples(measurement: Measurement) -> stats.Seconds | None:
    """Seconds [repeats, batches] of a record, None where they are not there whole."""
    return measurement.record.whole_seconds() if measurement.record else None


def _baseline(measurement: Measurement, source: Source) -> Measurement | None:
    """Full-batching on the same workload in the same source, where it has a time."""
    wanted, forward = group_of(measurement.row), _forward(measurement.row)
    for other in source.measurements:
        alike = group_of(other.row) == wanted and other.machine == measurement.machine
        same = other.row.method == BASELINE and alike and other.seconds is not None
        # A serving engine has a forward of its own, and is compared whatever that of the others is.
        if same and forward in {(None, None), _forward(other.row)}:
            return other
    return None


def _forward(row: Row) -> tuple[object, object]:
    return value_of(row, "forward"), row.max_tokens_per_forward


def _beside(measurement: Measurement, source: Source) -> stats.Seconds | None:
    """Full-batching's samples from the same process, which took turns with this method."""
    base = _baseline(measurement, source)
    if base is None or base.row.comparison_id != measurement.row.comparison_id:
        return None
    own, seconds = _samples(measurement), _samples(base)
    if own is None or seconds is None or len(own) != len(seconds):
        return None
    return seconds if own.shape == seconds.shape or not batches_are_draws(measurement.row) else None


def _speedup(measurement: Measurement, source: Source) -> stats.Interval | None:
    """Over full-batching: as the row says, else from records of runs of their own."""
    row = measurement.row
    if measurement.seconds is None or row.method == BASELINE or row.arrivals:
        return None
    if row.speedup_over_full_batching is not None:
        return row.interval("speedup_over_full_batching")
    base = _baseline(measurement, source)
    if base is None:
        return None
    found, from_samples = _ratio(base, measurement, batches_are_draws(row))
    if from_samples or not method_of(row.method).packs_dataset:
        return found
    # Its batches are bins of the whole dataset: without samples only times of a prompt can be compared.
    times = base.row.seconds_per_prompt_mean, row.seconds_per_prompt_mean
    return stats.Interval(times[0] / times[1], math.nan, math.nan) if times[0] and times[1] else None
