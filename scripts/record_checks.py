"""Whether a folder of records may be shared: schema, samples against the row, names, nothing private."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.provenance import EARLIER_CODE, EARLIER_FILES, code_hash
from src.records import schema
from src.records import store as records
from src.records.row import Row

ROOT = Path(__file__).resolve().parents[1]
FILES = (records.RECORD_FILE, "samples.csv", "config.yaml")
ALL_FILES = (*FILES, records.REQUESTS_FILE)  # the last of runs under load alone
MOST_CONFIG_BYTES = 100_000  # settings take two thousand; a YAML of megabytes takes minutes to read
ROUNDING = 1e-6
BASELINE = "full-batching"
Seconds = dict[tuple[int, int], float]  # of each repeat and batch


@dataclass
class Found:
    """What a folder of records holds, and what is wrong with it, one line each."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """Machine, number of records, and how many may be relied upon."""
        devices = ", ".join(sorted({row.device_name for row in self.rows})) or "no machine"
        said = Counter(row.valid for row in self.rows)
        unsaid = f", {said[None]} without a verdict" if said[None] else ""
        return f"{devices}: {len(self.rows)} records, {said[True]} VALID, {said[False]} INVALID{unsaid}"

    @property
    def notes(self) -> list[str]:
        """The records that may not be relied upon, or failed, each with its reason."""
        rows = [row for row in self.rows if row.valid is False or row.status != "ok"]
        return [
            f"note: {row.run_id}: {row.status}, {row.status_reason}"
            if row.status != "ok"
            else f"note: {row.run_id}: INVALID, {row.invalid_reasons}"
            for row in rows
        ]


def folders_of(root: Path) -> Iterator[Path]:
    """The folders of records below a machine's, finished ones only, in the order of their paths."""
    for path in sorted(root.rglob(records.RECORD_FILE)):
        if not any(part.startswith(records.DRAFT) for part in path.relative_to(root).parts):
            yield path.parent


def check_folder(root: Path, home: str | None = None) -> Found:
    """Check every record below a folder, and what they say together.

    Args:
        home: a folder that no record may name, beside those of users in general.
    """
    found, seconds = Found(), {}
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    for folder in folders_of(root):
        name = folder.relative_to(root).as_posix()
        try:
            row, samples, problems = _check_record(folder, validator, home)
        except ValueError as error:
            found.problems.append(f"{name}: {error}")
            continue
        found.problems += [f"{name}: {problem}" for problem in problems]
        if row.run_id in seconds:
            found.problems.append(f"{name}: another record has the run_id '{row.run_id}'")
        found.rows.append(row)
        seconds[row.run_id] = samples
    if len(devices := sorted({row.device_name for row in found.rows})) > 1:
        found.problems.append(f"records of several machines ({', '.join(devices)}): one folder, one machine")
    found.problems += _check_speedups(found.rows, seconds)
    return found


def _check_record(
    folder: Path, validator: jsonschema.Draft202012Validator, home: str | None
) -> tuple[Row, Seconds, list[str]]:
    """A record's row and samples, and what is wrong with them.

    Raises:
        ValueError: there is no such row: a file is missing, cannot be read, or is not as the schema says.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    content = records.read_content(folder)
    if wrong := [f"{_place(error)}: {error.message[:150]}" for error in validator.iter_errors(content)]:
        raise ValueError("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if wrong[3:] else ""))
    row = schema.check(content)
    samples = _read_samples(folder / "samples.csv")
    problems = [*_private(folder, content, home), *_check_samples(row, samples), *_check_commit(content["manifest"])]
    problems += _check_requests(folder, row) if row.arrivals and row.status == "ok" else []
    if row.run_id != folder.name:
        problems.append(f"its run_id is '{row.run_id}', not the folder's name")
    if content["prompt_lengths"] and len(content["prompt_lengths"]) != row.num_prompts:
        problems.append(f"{len(content['prompt_lengths'])} prompt_lengths, the row says {row.num_prompts} prompts")
    if (folder / "config.yaml").stat().st_size > MOST_CONFIG_BYTES or not records.read_config(folder):
        problems.append("config.yaml holds no settings that can be read")
    return row, samples, problems


def _place(error: jsonschema.ValidationError) -> str:
    return ".".join(map(str, error.absolute_path)) or records.RECORD_FILE


def _private(folder: Path, content: object, home: str | None) -> Iterator[str]:
    """What stands in a record's files that says who measured it; as text, and as JSON's escapes mean it."""
    for name in (name for name in ALL_FILES if (folder / name).is_file()):
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        if name == records.RECORD_FILE:
            text += json.dumps(content, ensure_ascii=False)
        if found := records.HOME.search(text):
            yield f"{name} names a home folder ({found[0][:60]})"
        elif home and len(home) > 1 and home in text:
            yield f"{name} names a home folder ({home})"
        if records.TOKEN.search(text):
            yield f"{name} holds an access token"


def _check_commit(manifest: dict[str, Any]) -> Iterator[str]:
    """Whether a commit that was given has the code that measured.

    Where there is still none, whoever gets the records has to check it.
    """
    if not manifest.get("git_commit_given") or not (ROOT / ".git").exists():
        return
    commit = str(manifest.get("git_commit"))
    there = code_hashes_of(commit)
    if there is None:
        yield f"its commit {commit[:12]} was given, and is not in this repository: fetch it to check it"
    elif manifest.get("code_hash") not in there:
        yield f"its commit {commit[:12]} was given, and has other code: {there[0]}, not {manifest.get('code_hash')}"


@functools.cache
def code_hashes_of(commit: str) -> tuple[str, str] | None:
    """``code_hash`` of a commit of this checkout's repository, by today's rule and by that of earlier records.

    Returns:
        None where the repository has no such commit.
    """
    if not re.fullmatch("[0-9a-f]{40}", commit):  # so that it is no option of git's
        return None
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "src"], capture_output=True)
    if done.returncode:
        return None
    with tempfile.TemporaryDirectory(prefix="prepack-bench-") as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            tar.extractall(folder, filter="data")
        package = Path(folder) / "src"
        return code_hash(package), code_hash(package, EARLIER_CODE, EARLIER_FILES)


def _read_samples(path: Path) -> Seconds:
    """Seconds of each repeat and batch.

    Raises:
        ValueError: it is no such table.
    """
    found: Seconds = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                place = int(line["repeat"]), int(line["batch"])
                if place in found:
                    raise ValueError(f"repeat {place[0]}, batch {place[1]} stands there twice")
                found[place] = float(line["seconds"])
                if not 0 < found[place] < math.inf:
                    raise ValueError(f"'{line['seconds']}' seconds")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"samples.csv cannot be read ({reason})") from None
    return found


def _check_samples(row: Row, samples: Seconds) -> Iterator[str]:
    """Whether the row sums up the samples."""
    if len(samples) != row.repeats * row.num_batches:
        yield f"samples.csv has {len(samples)} samples, the row {row.repeats} repeats of {row.num_batches} batches"
    elif set(samples) != set(itertools.product(range(row.repeats), range(row.num_batches))):
        yield f"samples.csv does not have each of {row.num_batches} batches in each of {row.repeats} repeats"
    mean = math.fsum(samples.values()) / len(samples) if samples else None
    said = row.seconds_per_batch_mean
    if row.status != "ok" and said is None:
        return
    if mean is None or said is None or not math.isclose(mean, said, rel_tol=ROUNDING):
        shown = ["none" if value is None else f"{value:.6g} s" for value in (said, mean)]
        yield f"seconds_per_batch_mean is {shown[0]}, that of the samples {shown[1]}"


def _check_requests(folder: Path, row: Row) -> Iterator[str]:
    """Whether the row's waits are those of the prompts."""
    try:
        with (folder / records.REQUESTS_FILE).open(newline="", encoding="utf-8") as file:
            waited = [float(line["first_token_s"]) - float(line["arrival_s"]) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        yield f"{records.REQUESTS_FILE} cannot be read ({error})"
        return
    if len(waited) != row.num_prompts:
        yield f"{records.REQUESTS_FILE} has {len(waited)} prompts, the row {row.num_prompts}"
    elif row.ttft_mean_s is None or not math.isclose(
        math.fsum(waited) / len(waited), row.ttft_mean_s, rel_tol=ROUNDING
    ):
        yield f"ttft_mean_s is {row.ttft_mean_s}, that of the prompts {math.fsum(waited) / len(waited):.6g} s"


def _check_speedups(rows: list[Row], seconds: dict[str, Seconds]) -> Iterator[str]:
    """Whether speedups are those of the samples, where full-batching was measured in the same comparison."""
    comparisons: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        comparisons[row.comparison_id].append(row)
    for group in comparisons.values():
        base = next((seconds[row.run_id] for row in group if row.method == BASELINE and seconds[row.run_id]), None)
        for row in group:
            own, said = seconds[row.run_id], row.speedup_over_full_batching
            if not base or not own or said is None:
                continue
            repeats = min(max(repeat for repeat, _ in samples) for samples in (base, own))
            totals = [sum(s for (repeat, _), s in samples.items() if repeat <= repeats) for samples in (base, own)]
            if not math.isclose(totals[0] / totals[1], said, rel_tol=ROUNDING):
                yield (
                    f"{row.run_id}: speedup_over_full_batching is {said:.6g}, that of the samples "
                    f"{totals[0] / totals[1]:.6g}"
                )
