"""Records as the report's page lists them: what was measured, on what, with what, and whether to rely on it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from ..records.row import Row
from ..records.store import Record
from .words import label

STATES = {True: "VALID", False: "INVALID", None: "not judged"}


@dataclass(frozen=True)
class Entry:
    """A record as the page shows it."""

    number: int
    anchor: str
    run_id: str
    summary: str
    state: str
    valid: bool | None
    facts: list[tuple[str, str]]
    path: str
    link: str


def anchor(kind: str, name: str, taken: set[str]) -> str:
    """An id that no other element of the page has."""
    plain = wanted = f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"
    count = 1
    while wanted in taken:
        count += 1
        wanted = f"{plain}-{count}"
    taken.add(wanted)
    return wanted


def link(path: str) -> str:
    """A relative path as an address, whatever characters it has."""
    return "./" + quote(path, errors="replace") if not path.startswith("../") else quote(path, errors="replace")


def entry(number: int, path: str, record: Record, taken: set[str]) -> Entry:
    """The record in the page; ``path`` of its folder is relative to the page, ``taken`` gets its anchor."""
    row = record.row
    state = "" if row.status == "ok" else f"{row.status}, "
    return Entry(
        number=number,
        anchor=anchor("record", row.run_id, taken),
        run_id=row.run_id,
        summary=f"{label(row)}: {row.dataset}, {row.model}, {row.metric}, {row.protocol}, "
        f"batch size {row.batch_size}, {row.device_name}",
        state=state + STATES[row.valid],
        valid=row.valid,
        facts=[(name, value) for name, value in _facts(row, record.manifest) if value],
        path=str(PurePosixPath(path)),
        link=link(path),
    )


def _facts(row: Row, made: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader needs to judge a record; a value that the record lacks is left out."""
    mean, low, high = row.seconds_per_batch_mean, row.seconds_per_batch_ci_low, row.seconds_per_batch_ci_high
    time = (
        "" if mean is None else f"{mean:.4g} s" + ("" if low is None or high is None else f" [{low:.4g}, {high:.4g}]")
    )
    checked = row.verified_max_rel_diff
    versions = {"python": made.get("python"), **(made.get("packages") or {}), "CUDA": made.get("cuda")}
    machine = {
        "CPU": made.get("cpu"),
        "cores": made.get("cpu_cores"),
        "threads": made.get("torch_threads"),
        "driver": made.get("nvidia_driver"),
        "system": made.get("system"),
    }
    changed = "with uncommitted changes" if made.get("git_dirty") else ""
    return [
        ("Status", row.status + (f": {row.status_reason}" if row.status_reason else "")),
        ("Valid", STATES[row.valid] + (f": {row.invalid_reasons}" if row.invalid_reasons else "")),
        ("Notes", row.notes or ""),
        ("Time per batch", time),
        ("Method", _joined(row.method, row.packing, row.forward and f"forward {row.forward}", row.attention,
                           row.attention_kernel and f"kernel {row.attention_kernel}")),
        ("Settings", _joined(row.metric, f"protocol {row.protocol}", f"batch size {row.batch_size}",
                             f"{row.repeats} repeats", f"seed {row.seed}", row.dtype,
                             row.loadbit != "none" and f"{row.loadbit}-bit weights",
                             row.faults and f"with faults {row.faults}", f"configuration {row.config_hash}")),
        ("Model", _joined(row.model, row.model_detail, f"{row.weights_source} weights")),
        ("Workload", _joined(row.dataset, row.dataset_detail, f"{row.num_prompts:,} prompts",
                             f"{row.num_batches:,} batches", f"fingerprint {row.workload_fingerprint}")),
        ("Checked", "" if checked is None else f"{row.verified_prompts} prompts against each run alone; keys and "
                                               f"values of a layer differ by {checked:.1e} of its norm at most"),
        ("Machine", _joined(row.device_name, *(f"{name} {value}" for name, value in machine.items() if value))),
        ("Commit", _joined(made.get("git_commit") or "unknown", changed,
                           made.get("code_hash") and f"measuring code {made['code_hash']}")),
        ("Versions", _joined(*(f"{name} {value}" for name, value in versions.items() if value))),
        ("Written", row.created_at),
    ]  # fmt: skip


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def origin(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The page's byline: how many records, from which machines, of when."""
    if not records:
        return []
    rows = [record.row for record in records]
    valid = sum(row.valid is True for row in rows)
    days = sorted(row.created_at[:10] for row in rows if row.created_at)
    when = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""
    commits = _unique((record.manifest.get("git_commit") or "")[:12] for record in records)
    facts = [
        ("Records", f"{len(rows):,}, {valid:,} of them valid"),
        ("Measured on", "; ".join(_unique(row.device_name for row in rows))),
        ("Measured", when),
        ("Commits", commits[0] if len(commits) == 1 else str(len(commits) or "")),
    ]
    return [(name, value) for name, value in facts if value]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))
