"""What one comparison says, in a few sentences: how much faster, of how many positions, and how far to believe it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..interval import Interval
from ..prefilling.methods import BASELINE, method_of
from ..records.groups import place_of
from ..records.row import Row
from .cells import significant, tells, times
from .comparison import per_prompt
from .waiting import waited
from .words import label

# What a method is held against, the first that took turns with it, and the column of its speedup over that.
OVER = {BASELINE: "speedup_over_full_batching", "length-ordered": "speedup_over_length_ordered"}


def of_run(rows: Sequence[Row]) -> list[str]:
    """The answer of one comparison, in one to three lines.

    Args:
        rows: of methods measured in turns, whatever became of them.
    """
    done = _in_order(rows)
    if not done:
        return [f"nothing was measured: {_failed(rows)}"]
    subject, held = done[0], _held_against(done)
    lines = [_sentence(subject, *held) if held else _alone(subject, len(done))]
    if len(done) > (2 if held else 1):
        by_time = sorted(done, key=lambda row: row.seconds_per_prompt_mean or math.inf)
        lines.append(f"per prompt: {', '.join(f'{label(row)} {_milliseconds(row)}' for row in by_time)}")
    doubts = [f"not measured: {_failed(rows)}"] if len(done) < len(rows) else []
    if invalid := [label(row) for row in done if row.valid is False]:
        doubts.append(f"INVALID, not to be relied upon: {', '.join(invalid)}")
    return [*lines, *(["; ".join(doubts)] if doubts else [])]


def in_short(rows: Sequence[Row]) -> str:
    """The same in a few words, ``prepacking 3.1x``: the speedup, or where there is none the time per prompt."""
    done = _in_order(rows)
    if not done:
        return _failed(rows)
    if done[0].arrivals:
        return waited(done[0])
    subject, held = done[0], _held_against(done)
    words = f"{label(subject)} {_milliseconds(subject)} / prompt"
    if held:
        base, ratio = held
        words = f"{label(subject)} {ratio.value:.1f}x" + ("" if base.method == BASELINE else f" over {label(base)}")
        words += "" if certain(ratio, subject.noise_floor or 0.0) else " (cannot tell)"
    return words + (", INVALID" if subject.valid is False else "") + (f", {_failed(rows)}" if _failed(rows) else "")


def certain(ratio: Interval, noise_floor: float = 0.0) -> bool:
    """Whether an interval is known well enough to say that it lies above or below 1."""
    return tells(ratio.low, ratio.high) and not ratio.few and ratio.verdict(noise_floor) != "inconclusive"


def doubt(ratio: Interval, noise_floor: float = 0.0) -> str:
    """Why a ratio says little; empty where it says something."""
    if not tells(ratio.low, ratio.high) or ratio.few:
        return "too few batches or repeats to rely on it"
    if ratio.low <= 1 <= ratio.high:
        return "the interval contains 1: no difference is shown"
    near = f"the interval reaches within {100 * noise_floor:g} % of 1, which counts as no difference"
    return "" if certain(ratio, noise_floor) else near


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a time, prepacking first and the method that others are held against last."""
    done = [row for row in rows if row.status == "ok"]
    return sorted(done, key=lambda row: (row.method == BASELINE, place_of(row.method)))


def _held_against(done: Sequence[Row]) -> tuple[Row, Interval] | None:
    """What the first method is held against, and its speedup over that."""
    by_method = {row.method: row for row in done[1:]}
    for method, column in OVER.items():
        ratio = done[0].interval(column)
        if method in by_method and ratio is not None:
            return by_method[method], ratio
    return None


def _sentence(subject: Row, base: Row, ratio: Interval) -> str:
    figure = times(ratio) if tells(ratio.low, ratio.high) else f"{ratio.value:.2f}x"
    doubts = doubt(ratio, subject.noise_floor or 0.0)
    said = f"{label(subject)} takes {100 / ratio.value:.0f} % of the time of {label(base)}: {figure} as fast"
    said += f" ({doubts})" if doubts else ""
    if subject.computed_tokens and base.computed_tokens:
        said += f"; it computes {100 * subject.computed_tokens / base.computed_tokens:.0f} % of the positions"
    return said


def _alone(subject: Row, measured: int) -> str:
    """The times of a method that nothing here is the measure of."""
    said = f"{label(subject)} takes {_milliseconds(subject)} per prompt"
    if not method_of(subject.method).packs_dataset and subject.seconds_per_batch_mean is not None:
        said += f", {significant(subject.seconds_per_batch_mean)} s per batch of {subject.batch_size}"
    return said + ("; no other method was measured to hold it against" if measured == 1 else "")


def _milliseconds(row: Row) -> str:
    found = per_prompt(row)
    return "n/a" if found is None else f"{significant(found)} ms"


def _failed(rows: Sequence[Row]) -> str:
    return ", ".join(f"{label(row)} {row.status}" for row in rows if row.status != "ok")
