"""What prepacking is worth on a machine: over full-batching, over what sorts or needs no padding, and in memory."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import stats
from ..interval import Interval
from ..records.row import Row
from ..records.store import Record
from .answer import certain, doubt
from .cells import times
from .select import BASE, ORDERED, PACKED, memory_of, memory_ratio
from .words import UNITS

PADDING_FREE = "padding-free"
ByMethod = dict[str, Record]  # of one comparison, by method, what was measured in turns
NOTHING = "not measured"


@dataclass(frozen=True)
class Ratio:
    """How many times as much another method took in a comparison, and prepacking's row in it."""

    value: Interval
    row: Row


def worth(records: Sequence[Record]) -> dict[str, str]:
    """Three lines, each below the name of what prepacking is held against.

    Args:
        records: of one machine; of the same work measured several times those of one run.
    """
    runs = _runs(records)
    if not runs:
        return {}
    prefill, ttft = ([run for run in runs if run[PACKED].row.metric == metric] for metric in UNITS)
    speedups = (("prefill", prefill, " as fast"), ("TTFT", ttft, ""))
    ordered, padding_free = _over(runs, ORDERED, _over_length_ordered), _over(runs, PADDING_FREE, _over_padding_free)
    in_memory = _over(runs, BASE, _in_memory)
    above = memory_of(in_memory[0].row) if in_memory else ""
    over_base = [f"{name} {_in_words(_over(of, BASE, _over_full_batching), what)}" for name, of, what in speedups]
    return {
        "over full-batching": "; ".join(over_base),
        "over others": f"length-ordered, which needs all prompts in advance: {_in_words(ordered)}; "
        f"padding-free: {_in_words(padding_free)}",
        "in memory": f"full-batching needs {_in_words(in_memory, ' as much', bare=True)}{above}",
    }


def left_out(records: Sequence[Record]) -> str:
    """What of it is INVALID, in words; empty where nothing is."""
    runs = _every_run(records)
    invalid = [run for run in runs if not _relied_upon(run)]
    if not invalid:
        return ""
    if len(invalid) == len(runs):
        return "every comparison is INVALID: do not rely on it"
    return f"{len(invalid)} of {len(runs)} comparisons left out as INVALID"


def _every_run(records: Sequence[Record]) -> list[ByMethod]:
    """The comparisons that prepacking was measured in, with what else was measured in them.

    None of them is under load, where batches form by themselves and differ from method to method.
    """
    found: dict[str, ByMethod] = defaultdict(dict)
    for record in records:
        row = record.row
        if row.status == "ok" and not (row.faults or row.speedup_across_runs or row.arrivals):
            found[record.row.comparison_id][record.row.method] = record
    return [run for run in found.values() if PACKED in run and len(run) > 1]


def _runs(records: Sequence[Record]) -> list[ByMethod]:
    """Those that nothing speaks against; all of them where something speaks against each."""
    every = _every_run(records)
    return [run for run in every if _relied_upon(run)] or every


def _relied_upon(run: ByMethod) -> bool:
    return all(record.row.valid is not False for record in run.values())


def _over(runs: Sequence[ByMethod], method: str, ratio: Callable[[ByMethod], Interval | None]) -> list[Ratio]:
    """The ratio in each comparison that has both methods."""
    found = [(ratio(run), run[PACKED].row) for run in runs if method in run]
    return [Ratio(value, row) for value, row in found if value is not None]


def _over_full_batching(run: ByMethod) -> Interval | None:
    return run[PACKED].row.interval("speedup_over_full_batching")


def _over_length_ordered(run: ByMethod) -> Interval | None:
    return run[PACKED].row.interval("speedup_over_length_ordered")


def _over_padding_free(run: ByMethod) -> Interval | None:
    """No column has it, so it comes from the samples; both methods have the same batches."""
    free, packed = run[PADDING_FREE].whole_seconds(), run[PACKED].whole_seconds()
    if free is None or packed is None or free.shape != packed.shape:
        return None
    return stats.speedup_interval(free, packed, same_batches=True)


def _in_memory(run: ByMethod) -> Interval | None:
    """Peak memory, which has no interval: it is the largest of a run."""
    found = memory_ratio(run[BASE].row, run[PACKED].row)
    return None if found is None else Interval(found, found, found)


def _in_words(found: Sequence[Ratio], what: str = "", bare: bool = False) -> str:
    """``2.10x as fast (median of 24), up to 7.29x [3.85, 25.18] (readme_table, mmlu, batches of 32)``.

    The largest is of those that are known well enough, as of many uncertain ones chance makes one large.

    Args:
        bare: the ratios have no intervals.
    """
    if not found:
        return NOTHING
    sure = [each for each in found if bare or certain(each.value, each.row.noise_floor or 0.0)]
    if len(found) == 1:
        (only,) = found
        doubts = "" if sure else f"; {doubt(only.value, only.row.noise_floor or 0.0)}"
        return f"{_figure(only, bare)}{what} ({_where(only.row)}{doubts})"
    middle = f"{statistics.median(each.value.value for each in found):.2f}x{what}"
    if not sure:
        experiments = sorted({each.row.experiment or each.row.model for each in found})
        return f"{middle} (median of {len(found)}, all of them uncertain; {', '.join(experiments)})"
    unsure = f", {len(found) - len(sure)} of them uncertain" if len(sure) < len(found) else ""
    largest = max(sure, key=lambda each: each.value.value)
    said = f"{middle} (median of {len(found)}{unsure})"
    if largest.value.value < statistics.median(each.value.value for each in found):
        return said  # what lies above it is too uncertain to be named
    return f"{said}, up to {_figure(largest, bare)} ({_where(largest.row)})"


def _figure(ratio: Ratio, bare: bool) -> str:
    return f"{ratio.value.value:.2f}x" if bare else times(ratio.value)


def _where(row: Row) -> str:
    """The experiment, or else the model, and the batches that a figure is from."""
    return f"{row.experiment or row.model}, {row.dataset}, batches of {row.batch_size}"
