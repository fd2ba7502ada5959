"""Reads one side of a comparison: the records below a folder, or a summary.csv that someone sent."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli import UserError
from ..places import command_line
from ..records.row import COLUMNS, HOW, MACHINE, WORK, Row, key, odd
from ..records.store import Record, read_all

NEEDED = (
    "status", "metric", "protocol", "method", "model", "weights_source", "model_detail", "dataset_source", "loadbit",
    "dtype", "num_prompts", "batch_size", "workload_fingerprint", "device_name", "seconds_per_batch_mean",
    "seconds_per_batch_ci_low", "seconds_per_batch_ci_high",
)  # fmt: skip
RENAMED = {"quirks": "faults"}  # columns that older versions called otherwise
FACTS = ("Device", "torch", "transformers", "Threads", "CUDA, driver", "Commit", "Measured")


@dataclass(frozen=True)
class Measurement:
    """A measurement: its row, and its record; None where only the row was sent.

    ``unknown``: columns that a file of an older version lacks.
    """

    row: Row
    record: Record | None = None
    unknown: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[object, ...]:
        """What it measured; equal for measurements that can be compared."""
        return key(self.row, WORK, HOW)

    @property
    def machine(self) -> tuple[object, ...]:
        """What it ran on, with its software."""
        return key(self.row, MACHINE)

    @property
    def seconds(self) -> float | None:
        """Mean seconds of a batch, or to first token under load; None where the method has no time to show."""
        mean: float | None = getattr(self.row, self.row.time_column)
        return mean if self.row.status == "ok" and mean is not None and 0 < mean < math.inf else None


@dataclass
class Source:
    """One side of a comparison.

    Attributes:
        letter: what tables call it; A is the reference.
        name: the folder or file, as it was typed.
        measurements: its measurements, of several of one kind the newest.
        facts: what it ran on, by ``FACTS``.
        notes: what a reader must know of it.
    """

    letter: str
    name: str
    measurements: list[Measurement]
    facts: dict[str, str]
    notes: list[str] = field(default_factory=list)


def read_source(letter: str, typed: str) -> Source:
    """Read a folder of records or a summary.csv.

    Raises:
        UserError: there is no such thing, it holds no measurement or those of several machines, or is no summary.csv.
    """
    path = Path(typed).expanduser()
    found: list[Measurement] = []
    facts: dict[str, dict[str, None]] = {name: {} for name in FACTS}
    notes = []
    if path.is_dir():
        for record in read_all(path):
            found.append(Measurement(record.row, record))
            for name, fact in _facts(record.manifest).items():
                facts[name][fact] = None
        if not found:
            raise UserError(typed, "no readable record below it", "name a folder that holds records, or a summary.csv")
    elif path.is_file() and path.suffix == ".csv":
        found = list(_read_csv(typed, path))
        for name in FACTS:
            facts[name]["unknown"] = None
        notes.append(f"{letter} is a summary.csv, which tells neither samples nor versions")
    elif path.is_file():
        raise UserError(typed, "neither a folder nor a .csv", "name a folder that holds records, or a summary.csv")
    else:
        raise UserError(typed, "there is no such folder or file", "name a folder that holds records, or a summary.csv")
    kept = _newest(typed, found)
    if older := len(found) - len(kept):
        notes.append(f"{letter} holds several measurements of a kind: the newest stand, {older} older ones do not")
    facts["Device"] = dict.fromkeys(measurement.row.device_name for measurement in found)
    facts["Threads"] = dict.fromkeys(str(measurement.row.torch_threads or "unknown") for measurement in found)
    days = sorted(measurement.row.created_at[:10] for measurement in kept)
    facts["Measured"] = dict.fromkeys(day for day in (days[0], days[-1]) if day)
    said = {name: (" to " if name == "Measured" else "; ").join(values) for name, values in facts.items()}
    return Source(letter, typed, kept, said, notes)


def _newest(typed: str, found: list[Measurement]) -> list[Measurement]:
    newest: dict[tuple[object, ...], Measurement] = {}
    for measurement in found:
        other = newest.setdefault(measurement.key, measurement)
        if other.row.device_name != measurement.row.device_name:
            machines = " and ".join(sorted({other.row.device_name, measurement.row.device_name}))
            raise UserError(typed, f"holds the same measurement of {machines}", "name the folder of one machine")
        if other.row.created_at <= measurement.row.created_at:
            newest[measurement.key] = measurement
    return list(newest.values())


def _facts(made: dict[str, Any]) -> dict[str, str]:
    packages = made.get("packages") or {}
    dirty = " with uncommitted changes" if made.get("git_dirty") else ""
    driver = f"{made.get('cuda') or 'unknown'}, {made.get('nvidia_driver') or 'unknown'}"
    return {
        "torch": packages.get("torch") or "unknown",
        "transformers": packages.get("transformers") or "unknown",
        "CUDA, driver": driver if made.get("gpu") else "none",
        "Commit": (made.get("git_commit") or "unknown")[:12] + dirty,
    }


def _read_csv(typed: str, path: Path) -> Iterator[Measurement]:
    """The rows of a summary.csv, in the columns of ``Row``; other columns are passed over.

    Raises:
        UserError: not such a file, or a line of it is cut short or has a value of the wrong type.
    """
    remedy = f"give a summary.csv that {command_line('report')} wrote"
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(typed, f"cannot be read as CSV ({error})", remedy) from None
    if not lines:
        raise UserError(typed, "is empty", remedy)
    header, *body = lines
    header = [RENAMED.get(name, name) for name in header]
    if missing := [name for name in NEEDED if name not in header]:
        others = f" (nor {len(missing) - 1} others that are needed)" if missing[1:] else ""
        raise UserError(typed, f"has no column '{missing[0]}'{others}", remedy)
    if not any(body):
        raise UserError(typed, "has a header and no rows", remedy)
    unknown = frozenset(COLUMNS) - set(header)
    types = {name: column.type for name, column in COLUMNS.items()}
    for number, cells in enumerate(body, 2):
        if not cells:
            continue
        if len(cells) != len(header):
            more = "fewer" if len(cells) < len(header) else "more"
            problem = f"line {number} has {more} cells than the header ({len(cells)} for {len(header)})"
            raise UserError(typed, problem, remedy)
        values = {}
        for name, text in zip(header, cells, strict=True):
            if name in types and text != "":
                try:
                    values[name] = _parse(types[name], text)
                except ValueError:
                    raise UserError(typed, f"line {number}: {name} is '{text}'", remedy) from None
        row = Row(**values)
        if said := odd(row):
            raise UserError(typed, f"line {number}: {said}", remedy)
        yield Measurement(row, unknown=unknown)


def _parse(kind: str, text: str) -> Any:
    """A cell as its column's type; pandas writes whole numbers of a column with gaps as 3.0, and True or False."""
    if kind.startswith("bool"):
        if not re.fullmatch("true|false", text, re.IGNORECASE):
            raise ValueError(text)
        return text.lower() == "true"
    if kind.startswith(("int", "float")):
        number = float(text)
        if kind.startswith("float"):
            return number
        if not number.is_integer():
            raise ValueError(text)
        return int(number)
    return text
