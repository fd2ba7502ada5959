"""Reads the prompts of a local file: one field of text of jsonl, json, csv or parquet, or the lines of a txt file.

Only the field that is asked for is read and judged. What other fields hold, or that they come late or change their
type, makes no difference to the prompts. A file whose rows do not fit its header is refused with the line's number:
a reader that guesses would measure another column's text without a word.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..cli import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
CHARACTER_SETS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # by the byte-order mark that a file begins with
csv.field_size_limit(sys.maxsize)  # a prompt may be longer than the 131,072 characters that csv allows by itself


def read_prompts(path: Path, field: str) -> list[Any]:
    """The values of one field in the order of the file, None where a record has none; of txt its lines.

    Raises:
        UserError: there is no such file or field, or the file is not what its ending says.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise UserError("dataset.path", f"there is no file '{path}'", "give the path of an existing file")
    if kind not in READERS:
        raise UserError("dataset.path", f"'{path.name}' has an unknown ending", f"use one of {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise UserError("dataset.path", f"'{path.name}' is empty", "give a file with one prompt per record")
    try:
        columns = READERS[kind](path, field)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        problem = f"'{path.name}' is not what its ending says ({reason})"
        raise UserError("dataset.path", problem, f"give valid {kind[1:]}") from None
    return column_of(columns, "text" if kind == ".txt" else field, path.name)


def column_of(columns: dict[str, list[Any] | None], field: str, where: str) -> list[Any]:
    """The values of a field that holds texts.

    Args:
        columns: by name their values; None for those that were not read.

    Raises:
        UserError: there is no such field, or it holds something else than texts.
    """
    values = columns.get(field)
    if values is None:
        names = ", ".join(map(str, columns)) or "none"
        raise UserError("dataset.text_field", f"{where} has no field '{field}'", f"choose one of {names}")
    if kinds := sorted({type(value).__name__ for value in values if value is not None} - {"str"}):
        problem = f"'{field}' of {where} holds {', '.join(kinds)}"
        raise UserError("dataset.text_field", problem, "choose a field of text")
    return values


def read_table(text: str, wanted: str) -> tuple[list[str], Iterator[list[str]]]:
    """A table's header and its rows, separated by commas, semicolons or tabs, as the header shows.

    Args:
        wanted: a column that is looked for: of the separators, that one is taken by which the header has it.

    Raises:
        ValueError: no header, or a name in it twice. The rows raise it where one has more or fewer fields than the
            header, or quotes that do not close.
    """
    if "\0" in text:
        raise ValueError("it holds NUL characters")
    first = text.lstrip("\r\n").split("\n", 1)[0]
    headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in SEPARATORS}
    mark = max(SEPARATORS, key=lambda mark: (wanted in headers[mark], len(headers[mark])))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    header = next((cells for cells in lines if cells), [])
    if not header:
        raise ValueError("it has no header")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"two columns are named '{twice[0]}'")

    def rows() -> Iterator[list[str]]:
        began = lines.line_num + 1
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"line {began}: {error}") from None
            if cells and len(cells) != len(header):
                counted = f"{len(cells)} fields separated by {SEPARATORS[mark]}, the header {len(header)}"
                raise ValueError(f"line {began} has {counted}: quote texts that hold any")
            if cells:
                yield cells
            began = lines.line_num + 1

    return header, rows()


def read_text(path: Path) -> str:
    """A file's text, without the byte-order mark that programs for Windows begin it with.

    Raises:
        ValueError: it is neither UTF-8 nor UTF-16 with its mark.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in CHARACTER_SETS if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8: save the file as UTF-8") from None


def named(detail: str) -> str:
    """The file or dataset of a ``dataset_detail``, without the hash or split behind it."""
    return detail.rpartition(" ")[0] or detail


def file_hash(path: Path) -> str:
    """12 hex digits over a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _csv(path: Path, field: str) -> dict[str, list[Any] | None]:
    header, rows = read_table(read_text(path), field)
    if field not in header:
        return dict.fromkeys(header)
    place = header.index(field)
    found = [cells[place] or None for cells in rows]
    return {field: found if not all(map(_is_number, found)) else [float(text) for text in found if text]}


def _is_number(text: str | None) -> bool:
    """Whether a cell that holds anything holds a number. A column of such cells is none of prompts."""
    try:
        return not text or float(text) is not None
    except ValueError:
        return False


def _json(path: Path, field: str) -> dict[str, list[Any] | None]:
    """A list of records, or records one a line: files of either kind bear either ending."""
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        return _fields(json.loads(text), field)
    records = []
    for number, line in enumerate(text.split("\n"), 1):  # a line of JSON may hold U+2028, at which splitlines splits
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return _fields(records, field)


def _fields(records: Any, field: str) -> dict[str, list[Any] | None]:
    if not (isinstance(records, list) and all(isinstance(record, dict) for record in records)):
        raise ValueError("it is no list of records with named fields")
    names = dict.fromkeys(itertools.chain.from_iterable(records))
    return dict.fromkeys(names) | ({field: [record.get(field) for record in records]} if field in names else {})


def _parquet(path: Path, field: str) -> dict[str, list[Any] | None]:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        found = parquet.read_table(path, columns=[field])[field].to_pylist() if field in names else None
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    return dict.fromkeys(names) | ({field: found} if found is not None else {})


def _lines(path: Path, _: str) -> dict[str, list[Any] | None]:
    return {"text": [line.rstrip("\r") for line in read_text(path).removesuffix("\n").split("\n")]}


READERS: dict[str, Callable[[Path, str], dict[str, list[Any] | None]]] = {
    ".jsonl": _json, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".txt": _lines,
}  # fmt: skip
