"""Share measured results: pack a machine's records for a pull request, or check those that were sent.

``pack`` makes one archive of all records below a machine's folder, and none where ``check`` would find a problem: what
is left out of a set of results is a choice that nobody sees. Records that are INVALID or failed belong to it.
``check`` reads an archive or a folder: schema, samples against the row, names, nothing private.
``commit`` says afterwards which commit measured, where a tree was carried over a checkout of another one, so that its
records call it changed: the code that measured has to be that commit's.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from record_checks import ALL_FILES, Found, check_folder, code_hashes_of, folders_of

from src.cli import Parser, UserError, guarded
from src.measure.validity import CHANGED_TREE
from src.records import store as records

ENDING = ".tar.gz"
MB = 10**6
PACKED_MB, UNPACKED_MB, MOST_FILES = 25, 250, 15_000  # code hosts take attachments of 25 MB


def archive_of(root: Path) -> bytes:
    """A tar.gz of the records below a folder, the same bytes for the same records.

    Raises:
        UserError: it is larger than may be sent.
    """
    paths = [path for folder in folders_of(root) for name in ALL_FILES if (path := folder / name).is_file()]
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
        if name.name not in ALL_FILES or len(name.parts) < 3 or any(part.startswith(".") for part in name.parts):
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


def commit(typed: str, name: str) -> int:
    """Give records of a changed tree the commit that has the code they were measured with; a note of each says so."""
    root = Path(typed).expanduser()
    every = {folder: records.read_content(folder) for folder in folders_of(root)} if root.is_dir() else {}
    changed = {folder: content for folder, content in every.items() if content["manifest"].get("git_dirty")}
    if not changed:
        raise UserError(typed, "holds no record of a changed tree", "name the folder of a machine below results/")
    if (there := code_hashes_of(name)) is None:
        raise UserError(plain(name), "is no commit of this repository", "give its 40 hex digits; fetch it first")
    if other := {str(content["manifest"].get("code_hash")) for content in changed.values()} - {*there}:
        raise UserError(
            name, f"its code is {there[0]}; what measured is {', '.join(sorted(other))}", "give another commit"
        )
    for folder, content in changed.items():
        row, made = content["row"], content["manifest"]
        note = f"the commit was found afterwards, by its code: the tree had been carried over {made['git_commit'][:12]}"
        made |= {"git_commit": name, "git_commit_given": True, "git_dirty": None}
        row["notes"] = "; ".join(filter(None, [row["notes"], note]))
        if row["invalid_reasons"]:
            reasons = [reason for reason in row["invalid_reasons"].split("; ") if reason != CHANGED_TREE]
            row["invalid_reasons"], row["valid"] = "; ".join(reasons) or None, not reasons
        records.write_json(folder / records.RECORD_FILE, content)
    print(f"{len(changed)} records are of {name[:12]}, which has their code")
    return 0


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
    settling = commands.add_parser("commit", help="say afterwards which commit measured")
    settling.add_argument("folder", help="results/<machine>")
    settling.add_argument("commit", help="40 hex digits")
    options = parser.parse_args()
    if options.command == "commit":
        return commit(options.folder, options.commit)
    return pack(options.folder, options.out) if options.command == "pack" else check(options.path)


if __name__ == "__main__":
    sys.exit(guarded(main))
