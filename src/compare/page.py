"""A comparison of machines or versions into tables, a CSV and a plot."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .. import stats
from ..cli import UserError
from ..prefilling.methods import method_of
from ..records.row import Row
from ..report.cells import markdown, times
from ..report.words import label, title_anywhere
from .pairs import Matching, Pair, Unmatched, group_of
from .plot import draw
from .sources import FACTS, Measurement, Source

NAMED = ("metric", "protocol", "model", "dataset", "dtype", "loadbit", "faults", "batch_size", "num_prompts", "method",
         "packing", "forward", "workload_fingerprint")  # fmt: skip
FIGURES = (
    "ratio", "ratio_ci_low", "ratio_ci_high", "verdict", "interval_from", "interval_rests_on_few",
    "speedup_change", "speedup_change_ci_low", "speedup_change_ci_high",
)  # fmt: skip
COLUMNS = (
    *NAMED, "reference", "source", "reference_status", "source_status", "reference_seconds_per_batch",
    "source_seconds_per_batch", *FIGURES, "reference_speedup_over_full_batching", "source_speedup_over_full_batching",
    "reference_valid", "source_valid", "not_compared_because",
)  # fmt: skip
NO_TIME = "no time in it"


def page(found: Matching, noise_floor: float) -> str:
    """comparison.md: the verdict, what the sources ran on, each comparison's table, and what could not be compared."""
    head = [["A (reference)" if not place else each.letter, each.name, *(each.facts[name] for name in FACTS)]
            for place, each in enumerate(found.sources)]  # fmt: skip
    parts = ["# Comparison", "", *verdict(found, noise_floor), "", markdown(["", "Source", *FACTS], head), ""]
    for pairs in grouped(found.pairs):
        parts += [f"## {title_anywhere(pairs[0].row)}", "", table(pairs, noise_floor), ""]
    parts += [line for source in found.sources for line in source.notes]
    parts += _reading(found, noise_floor)
    if found.unmatched:
        parts += ["## Not compared", "", _unmatched(found.unmatched), ""]
    return "\n".join(parts)


def verdict(found: Matching, noise_floor: float) -> list[str]:
    """Up to three lines for each source: how the comparison ended, by how much, and what has no counterpart."""
    lines = []
    for source in found.sources[1:]:
        pairs = [pair for pair in found.pairs if pair.source is source]
        ratios = [pair.ratio for pair in pairs if pair.ratio is not None]
        said = Counter(ratio.verdict(noise_floor) for ratio in ratios)
        counts = ", ".join(f"{said[each]} {each}" for each in ("faster", "slower", "inconclusive"))
        doubted = sum(pair.ratio is not None and pair.doubted for pair in pairs)
        counts += f", {doubted} of them INVALID on a side" if doubted else ""
        failed = f", {len(pairs) - len(ratios)} without a time on a side" if len(pairs) > len(ratios) else ""
        name = f"{source.letter} ({source.name}) against A"
        if pairs:
            lines.append(f"{name}: {len(pairs)} measurements compared: {counts}{failed}")
        else:
            lines.append(f"{name}: nothing could be compared")
        if ratios:
            values = sorted(ratio.value for ratio in ratios)
            middle = math.exp(sum(map(math.log, values)) / len(values))
            span = f"{values[0]:.2f}x to {values[-1]:.2f}x"
            lines.append(f"A's time over {source.letter}'s: {middle:.2f}x (geometric mean), {span}")
        left = [each for each in found.unmatched if source in (each.source, each.other)]
        if left:
            sides = Counter(each.source.letter for each in left)
            counted = " and ".join(f"{sides[letter]} of {letter}'s" for letter in sorted(sides))
            why = ", ".join(f"{kind} ({count})" for kind, count in Counter(map(_kind, left)).most_common(3))
            lines.append(f"without a counterpart: {counted}; most of all for: {why}")
        else:
            lines.append("without a counterpart: none")
    return [f"- {line}" for line in lines]


def _kind(left: Unmatched) -> str:
    """What keeps a measurement from being compared, less the values."""
    return left.reason.split(":")[0].split(" differs")[0]


def grouped(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs that stand in one table, in the order of the first; those of one method side by side."""
    groups: dict[tuple[object, ...], dict[tuple[object, ...], list[Pair]]] = {}
    for pair in pairs:
        groups.setdefault(group_of(pair.row), {}).setdefault(pair.reference.key, []).append(pair)
    return [[pair for same in methods.values() for pair in same] for methods in groups.values()]


def table(pairs: Sequence[Pair], noise_floor: float) -> str:
    """One comparison in Markdown, and what must stand below it.

    Args:
        pairs: those of one method side by side.
    """
    header = [
        "Method",
        "Source",
        "mean TTFT (s)" if pairs[0].row.arrivals else "s / batch",
        "A's time / its",
        "Verdict",
        "Speedup over full-batching",
        "that over A's",
    ]
    body: list[list[str]] = []
    last: Measurement | None = None
    for pair in pairs:
        if pair.reference is not last:
            name = label(pair.row) + (f", {pair.row.policy}" if pair.row.policy else "")
            name += " *" if _offline(pair.row) else ""
            body.append([name, "A", _seconds(pair.reference), "", "", _said(pair.speedups[0]), ""])
            last = pair.reference
        verdict = "" if pair.ratio is None else pair.ratio.verdict(noise_floor)
        figures = [_said(pair.ratio), verdict, _said(pair.speedups[1]), _said(pair.change)]
        body.append(["", pair.source.letter, _seconds(pair.other), *figures])
    lines = _notes(pairs)
    return "\n".join([markdown(header, body), *(["", *lines] if lines else [])])


def _offline(row: Row) -> bool:
    return method_of(row.method).needs_dataset


def _seconds(measurement: Measurement) -> str:
    if measurement.seconds is None:
        return NO_TIME if measurement.row.status == "ok" else measurement.row.status
    return f"{measurement.seconds:.4g}" + (" !" if measurement.row.valid is False else "")


def _said(found: stats.Interval | None) -> str:
    if found is None:
        return ""
    return times(found) + (" ‡" if found.few else "")


def _notes(pairs: Sequence[Pair]) -> list[str]:
    """What must stand below a table: what failed, what is INVALID, and what the marks mean."""
    sides = [("A", pair.reference) for pair in pairs] + [(pair.source.letter, pair.other) for pair in pairs]
    measured = {(letter, measurement.key): measurement.row for letter, measurement in sides}
    lines = []
    for (letter, _), row in measured.items():
        if row.status != "ok":
            lines.append(f"{letter}, {label(row)}: {row.status}, {row.status_reason}")
        elif row.valid is False:
            lines.append(f"! INVALID: {letter}, {label(row)}: {row.invalid_reasons}")
    if any(_offline(row) for row in measured.values()):
        lines.append(
            "marked *: an offline oracle, which needs the whole dataset first; its intervals cover repeats only"
        )
    if any(each is not None and each.few for pair in pairs for each in (pair.ratio, pair.change, *pair.speedups)):
        lines.append(
            "‡ rests on fewer than 5 batches (offline methods: repeats), or on one repeat, which leaves drift out"
        )
    return lines


def _reading(found: Matching, noise_floor: float) -> list[str]:
    if not found.pairs:
        return []
    lines = [
        "A's time / its: above 1, the source is faster than A. Intervals: 95 %; a verdict needs the whole of one "
        f"beyond 1 ± {100 * noise_floor:g} %."
    ]
    if any(pair.ratio is not None and pair.paired for pair in found.pairs):
        lines.append("Batches are paired; repeats are not, for each source was measured at another time.")
    if any(pair.ratio is not None and not pair.paired for pair in found.pairs):
        names = ", ".join(dict.fromkeys(p.source.letter for p in found.pairs if p.ratio is not None and not p.paired))
        lines.append(
            f"{names}: without samples on both sides, the ratio's interval is made of those of both means as if they "
            "were independent. On the same batches they are not, so it is wider than it need be."
        )
    lines.append(
        "What one process differs by from another on the same machine is in no interval: between versions, do not make "
        "much of a few percent."
    )
    return [*lines, ""]


def _unmatched(left: Sequence[Unmatched]) -> str:
    """What has no counterpart, counted by the reason; comparison.csv lists each."""
    groups: dict[tuple[str, str, str], list[Unmatched]] = {}
    for each in left:
        groups.setdefault((each.source.letter, each.other.letter, _kind(each)), []).append(each)
    body = []
    for (here, there, _), same in groups.items():
        row = same[0].measurement.row
        status = "" if row.status == "ok" else f" ({row.status})"
        body.append([here, there, str(len(same)), same[0].reason, f"{label(row)}{status}: {title_anywhere(row)}"])
    return markdown(["Here", "There", "Measurements", "Reason (of the first)", "The first of them"], body)


def records(found: Matching, noise_floor: float) -> list[dict[str, object]]:
    """The lines of comparison.csv, one per pair and one per measurement that was not compared."""
    lines = []
    for pair in found.pairs:
        a, b = pair.reference.row, pair.other.row
        line: dict[str, object] = {name: getattr(pair.row, name) for name in NAMED}
        line |= {
            "reference": found.sources[0].name, "source": pair.source.name,
            "reference_status": a.status, "source_status": b.status,
            "reference_seconds_per_batch": pair.reference.seconds, "source_seconds_per_batch": pair.other.seconds,
            "reference_valid": a.valid, "source_valid": b.valid,
        }  # fmt: skip
        for name, interval in (("ratio", pair.ratio), ("speedup_change", pair.change)):
            if interval is not None:
                ends = {f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}
                line |= {name: interval.value} | {end: at for end, at in ends.items() if math.isfinite(at)}
        for side, speedup in zip(("reference", "source"), pair.speedups, strict=True):
            line[f"{side}_speedup_over_full_batching"] = None if speedup is None else speedup.value
        if pair.ratio is not None:
            line |= {"verdict": pair.ratio.verdict(noise_floor), "interval_rests_on_few": pair.ratio.few,
                     "interval_from": "samples" if pair.paired else "means"}  # fmt: skip
        lines.append(line)
    for each in found.unmatched:
        side = "reference" if each.source is found.sources[0] else "source"
        line = {name: getattr(each.measurement.row, name) for name in NAMED}
        line |= {side: each.source.name, f"{side}_status": each.measurement.row.status,
                 f"{side}_seconds_per_batch": each.measurement.seconds,
                 "not_compared_because": each.reason}  # fmt: skip
        line["source" if side == "reference" else "reference"] = each.other.name
        lines.append(line)
    return lines


def write(found: Matching, noise_floor: float, text: str, out_dir: Path) -> list[Path]:
    """Write comparison.md, comparison.csv and the plot, each whole or not at all, and return where they are.

    Raises:
        UserError: the folder cannot be written.
    """
    text_of_csv = io.StringIO()
    writer = csv.DictWriter(text_of_csv, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(found, noise_floor))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out_dir) as folder:
            draft, written = Path(folder), []
            linked = f"{text}\n![Times and speedups of the sources](comparison.png)\n"
            (draft / "comparison.md").write_text(linked, encoding="utf-8")
            (draft / "comparison.csv").write_text(text_of_csv.getvalue(), encoding="utf-8")
            groups = grouped(found.pairs)
            titles = [title_anywhere(pairs[0].row) for pairs in groups]
            draw(groups, found.sources, titles, noise_floor, draft / "comparison")
            for file in sorted(draft.iterdir(), key=lambda file: (file.suffix != ".md", file.name)):
                os.replace(file, out_dir / file.name)
                written.append(out_dir / file.name)
    except OSError as error:
        problem = f"cannot write '{out_dir}' ({error.strerror or error})"
        raise UserError("out_dir", problem, "name a writable folder") from None
    return written


def regressions(found: Matching, share: float) -> list[str]:
    """In words, each method that got slower by more than ``share`` with its whole interval, or that now fails.

    Where there is no interval, as of one batch measured once, the ratio itself is judged.
    """
    lines = []
    for pair in found.pairs:
        what = f"{pair.source.letter}, {label(pair.row)}, {title_anywhere(pair.row)}"
        if pair.fails_now:
            lines.append(f"{what}: {pair.other.row.status}, {pair.other.row.status_reason}")
        elif pair.ratio is not None and pair.slower_by(share):
            times = stats.Interval(1 / pair.ratio.value, 1 / pair.ratio.high, 1 / pair.ratio.low, pair.ratio.few)
            alone = "" if pair.has_interval else ", judged by itself"
            doubted = ", INVALID: not to be relied upon" if pair.doubted else ""
            lines.append(f"{what}: {_said(times)} the time{alone}{doubted}")
    return lines


def judged_by_themselves(found: Matching) -> int:
    """How many ratios have no interval, so that only the ratio itself could be judged."""
    return sum(pair.ratio is not None and not pair.has_interval for pair in found.pairs)


def unpaired(found: Matching) -> list[Source]:
    """The sources of which no time could be compared with the reference's."""
    compared = {pair.source.letter for pair in found.pairs if pair.ratio is not None or pair.fails_now}
    return [source for source in found.sources[1:] if source.letter not in compared]
