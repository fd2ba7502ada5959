"""Share measured results: pack a machine's records for a pull request, or check those that were sent.

``pack`` makes one archive of all records below a machine's folder, and none where ``check`` would find a problem: what
is left out of a set of results is a choice that nobody sees. Records that are INVALID or failed belong to it.
``check`` reads an archive or a folder: schema, samples against the row, names, nothing private.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import math
import os
import sys
import tarfile
import tempfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import jsonschema

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.cli import UserError, guarded  # noqa: E402
from src.compare import Parser  # noqa: E402
from src.measure import records, schema  # noqa: E402
from src.measure.row import Row  # noqa: E402

FILES = (records.RECORD_FILE, "samples.csv", "config.yaml")
ENDING = ".tar.gz"
MB = 10**6
PACKED_MB, UNPACKED_MB, MOST_FILES = 25, 250, 15_000  # code hosts take attachments of 25 MB
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
    problems = [*_private(folder, content, home), *_check_samples(row, samples)]
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
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        if name == records.RECORD_FILE:
            text += json.dumps(content, ensure_ascii=False)
        if found := records.HOME.search(text):
            yield f"{name} names a home folder ({found[0][:60]})"
        elif home and len(home) > 1 and home in text:
            yield f"{name} names a home folder ({home})"
        if records.TOKEN.search(text):
            yield f"{name} holds an access token"


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


def archive_of(root: Path) -> bytes:
    """A tar.gz of the records below a folder, the same bytes for the same records.

    Raises:
        UserError: it is larger than may be sent.
    """
    paths = [folder / name for folder in folders_of(root) for name in FILES]
    unpacked = sum(path.stat().st_size for path in paths)
    remedy = "pack the folders of several experiments apart"
    if unpacked > UNPACKED_MB * MB or len(paths) > MOST_FILES:
        problem = (
            f"holds {len(paths)} files of {unpacked / MB:.0f} MB; an archive may hold {MOST_FILES} of {UNPACKED_MB} MB"
        )
        raise UserError(str(root), problem, remedy)
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in paths:
            content = path.read_bytes()
            member = tarfile.TarInfo((root.name / path.relative_to(root)).as_posix())
            member.size, member.mode = len(content), 0o644  # owner and time stay 0
            tar.addfile(member, io.BytesIO(content))
    if packed.tell() > PACKED_MB * MB:
        raise UserError(str(root), f"is {packed.tell() / MB:.0f} MB packed; {PACKED_MB} MB can be sent", remedy)
    return packed.getvalue()


def unpack(path: Path, into: Path) -> list[str]:
    """Unpack an archive's records into a folder; nothing else of it is written, and nothing anywhere else.

    Returns:
        What does not belong in such an archive, one line each.

    Raises:
        UserError: no such archive, too large, or one that would write elsewhere.
    """
    try:
        if path.stat().st_size > PACKED_MB * MB:
            raise UserError(str(path), f"is larger than {PACKED_MB} MB", "ask for it in parts")
        with gzip.open(path) as file:
            content = file.read(UNPACKED_MB * MB + 1)
        if len(content) > UNPACKED_MB * MB:
            raise UserError(str(path), f"holds more than {UNPACKED_MB} MB", "ask for it in parts")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            return _unpack(path, tar, into)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(str(path), f"cannot be unpacked ({plain(reason)})", f"give a {ENDING} that pack made") from None


def _unpack(path: Path, tar: tarfile.TarFile, into: Path) -> list[str]:
    if not hasattr(tarfile, "data_filter"):
        raise UserError("Python", f"{sys.version.split()[0]} cannot unpack safely", "use 3.11.4 or newer")
    strays, seen, size = [], set(), 0
    for count, member in enumerate(tar, 1):
        name, shown = PurePosixPath(member.name), plain(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name or shown != member.name:
            raise UserError(str(path), f"would write outside its folder ('{shown}')", "do not unpack it")
        if not (member.isfile() or member.isdir()):
            raise UserError(str(path), f"'{shown}' is neither file nor folder", "do not unpack it")
        size += member.size
        if count > MOST_FILES or size > UNPACKED_MB * MB:
            raise UserError(str(path), f"holds more than {MOST_FILES} files or {UNPACKED_MB} MB", "ask for it in parts")
        if name in seen:
            raise UserError(str(path), f"holds '{shown}' twice", "do not unpack it")
        seen.add(name)
        if member.isdir():
            continue
        if name.name not in FILES or len(name.parts) < 3 or any(part.startswith(".") for part in name.parts):
            strays.append(f"{shown}: no part of a record below a machine's folder")
            continue
        tar.extract(member, into, set_attrs=False, filter="data")
    return strays


def plain(text: str) -> str:
    """A text that others wrote, as one line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _tell(found: Found) -> int:
    for line in [found.summary, *found.notes, *found.problems]:
        print(plain(line))
    return int(bool(found.problems))


def pack(typed: str, out: str | None) -> int:
    """Write the archive of a machine's folder, and say what it holds; nothing is written where there are problems."""
    root = Path(typed).expanduser().resolve()
    if not root.is_dir():
        raise UserError(typed, "there is no such folder", "name the folder of a machine below results/")
    if (root / records.RECORD_FILE).exists():
        raise UserError(typed, "is a single record", "name the folder of the machine that holds it")
    found = check_folder(root, str(Path.home()))
    if not found.rows and not found.problems:
        raise UserError(typed, "no record below it", "name the folder of a machine below results/")
    if _tell(found):
        print("nothing was packed: measure these again, or take them out and say so in the pull request")
        return 1
    content = archive_of(root)
    target = Path(out).expanduser() if out else Path(root.name + ENDING)
    draft = target.with_name(f"{records.DRAFT}{os.getpid()}-{target.name}")
    try:
        draft.write_bytes(content)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError("--out", f"cannot write '{target}' ({error.strerror})", "name a writable file") from None
    print(f"{target}: {len(content) / MB:.2f} MB")
    return 0


def check(typed: str) -> int:
    """Check an archive or a folder, and list what is wrong."""
    path = Path(typed).expanduser()
    if not path.exists():
        raise UserError(typed, "there is no such file or folder", f"name a {ENDING} or a folder of records")
    with tempfile.TemporaryDirectory(prefix="prepack-bench-") as scratch:
        strays = [] if path.is_dir() else unpack(path, Path(scratch))
        found = check_folder(path if path.is_dir() else Path(scratch))
    if not found.rows and not found.problems:
        raise UserError(typed, "holds no record", f"name a {ENDING} that pack made, or a folder of records")
    found.problems += strays
    return _tell(found)


def main() -> int:
    """0: fine; 1: problems, one per line; 2: bad input."""
    parser = Parser(
        prog="python scripts/share.py", description=__doc__, allow_abbrev=False,
        epilog="exit codes: 0 fine; 1 problems, one per line; 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write an archive of a machine's records")
    packing.add_argument("folder", help="results/<machine>")
    packing.add_argument("--out", metavar="FILE", help=f"where to; default <machine>{ENDING} here")
    commands.add_parser("check", help="check what was sent").add_argument("path", help=f"a {ENDING} or a folder")
    options = parser.parse_args()
    return pack(options.folder, options.out) if options.command == "pack" else check(options.path)


if __name__ == "__main__":
    sys.exit(guarded(main))
