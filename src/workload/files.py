"""Opens the files that prompts come in: several of them, patterns, compressed ones, in whatever character set."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path

from ..cli import UserError, warn

CHARACTER_SETS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # by the byte-order mark that a file begins with
OTHER_FORMATS = {b"PK\x03\x04": "a zip archive, as docx and xlsx are", b"%PDF": "a PDF", b"\x89HDF": "HDF5",
                 b"ARROW1": "an Arrow file", b"SQLite": "a database"}  # fmt: skip
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
FORMATS = "jsonl, json, csv, tsv, parquet or txt, plain or as gz, zst, xz, bz2"


def find(paths: str | Sequence[str]) -> list[Path]:
    """The files that a path, a pattern (``logs/*.jsonl``) or a list of either names, each once, in that order.

    Raises:
        UserError: nothing has the name of one of them.
    """
    found: dict[Path, None] = {}
    for each in [paths] if isinstance(paths, str) else paths:
        path = Path(each).expanduser()
        if path.is_dir():
            raise UserError("dataset.path", f"'{each}' is a folder", f"name its files: '{each.rstrip('/')}/*'")
        piped = str(each).startswith(("/dev/fd/", "/dev/stdin"))  # of the process that asked, which is another one
        if piped or (path.exists() and not path.is_file()):
            raise UserError("dataset.path", f"'{each}' is no regular file", "pipe it in, with dataset.path=-")
        # A name that exists is a name, whatever characters it has.
        matched = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not matched:
            raise UserError("dataset.path", f"there is no file '{each}'", "give the path of an existing file")
        found |= dict.fromkeys(file for file in matched if file.is_file())
    return list(found)


def contents(path: Path) -> bytes:
    """A file's bytes, uncompressed.

    Raises:
        UserError: it is empty, cannot be read, breaks off, or is of a format that holds no prompts.
    """
    try:
        content = _uncompressed(path.read_bytes())
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError("dataset.path", f"'{path.name}' cannot be read ({error})", "give a whole file") from None
    if not content:
        raise UserError("dataset.path", f"'{path.name}' is empty", "give a file with one prompt per record")
    for start, what in OTHER_FORMATS.items():
        if content.startswith(start):
            raise UserError("dataset.path", f"'{path.name}' is {what}", f"give {FORMATS}")
    return content


def _uncompressed(content: bytes) -> bytes:
    """What compressed bytes hold, by how they begin; others as they are."""
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    if content.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(content)
    if content.startswith(b"BZh"):
        return bz2.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
            return bytes(stream.read())
    return content


def decoded(content: bytes, name: str) -> str:
    """A file's text, without the byte-order mark that programs for Windows begin it with.

    What is no UTF-8 is read as Windows-1252, the other set in common use, with a note.

    Raises:
        ValueError: it is no text.
    """
    encoding = next((name for mark, name in CHARACTER_SETS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = content.decode("cp1252", errors="replace")
        if "\0" not in text:
            warn(f"{name} is not UTF-8 (line {line}): it is read as Windows-1252")
    if "\0" in text:
        raise ValueError("it holds NUL characters, so it is no text")
    return text


def file_hash(path: Path) -> str:
    """12 hex digits over a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def detail(paths: Sequence[Path]) -> str:
    """What a record says of the files that its prompts are from: their names, and a hash of all of them."""
    if len(paths) == 1:
        return f"{paths[0].name} sha256:{file_hash(paths[0])}"
    together = hashlib.sha256("".join(map(file_hash, paths)).encode()).hexdigest()[:12]
    names = ", ".join(path.name for path in paths[:3]) + ", …" * (len(paths) > 3)
    return f"{len(paths)} files ({names}) sha256:{together}"


def named(detail: str) -> str:
    """The file or dataset of a ``dataset_detail``, without the hash or split behind it."""
    return detail.rpartition(" ")[0] or detail
