"""Turns a file's bytes into records: of JSON, tables, parquet, or lines of text, found by what it holds.

A row that does not fit is refused with the number of its line: a reader that guesses would measure the text of another
column without a word.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

from . import files

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
TABLES = (".csv", ".tsv")
JSON = (".json", ".jsonl", ".ndjson")
LISTS = ("data", "rows", "records", "prompts", "requests", "examples", "instances", "train", "test")
csv.field_size_limit(sys.maxsize)  # a prompt may be longer than the 131,072 characters that csv allows by itself

OnBad = Callable[[str, str], None]  # told of a record that is none: where it is, and why; it may raise


@dataclass(frozen=True)
class Parsed:
    """A file's records.

    Attributes:
        values: dictionaries by the names of fields; or texts, or lists, where records have no names.
        places: where each stands: ``line 3``.
        names: of all fields, also of those that were not read.
    """

    values: list[Any]
    places: list[str]
    names: list[str]


def parse(content: bytes, name: str, ending: str, known: Collection[str], field: str | None, on_bad: OnBad) -> Parsed:
    """The records of a file.

    Args:
        ending: ``.csv``; it decides only what the content leaves open.
        known: names of fields that hold something of use, in lower case.
        field: the one that was asked for.

    Raises:
        ValueError: it is neither of the formats, and why.
    """
    if content.startswith(b"PAR1"):
        return _parquet(content, known, field)
    if ending == ".parquet":
        raise ValueError("it does not begin as parquet does")
    text = files.decoded(content, name)
    if ending in JSON or _begins_as_json(text):
        return _json(text, known, on_bad)
    if ending in TABLES:
        return _table(text, field, on_bad)
    if _begins_as_table(text, known, spaced=ending != ".txt"):
        try:
            return _table(text, field, on_bad)
        except ValueError:
            if ending != ".txt":  # there, a line that begins with such a word is a prompt rather than a header
                raise
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    return Parsed(lines, [f"line {n}" for n in range(1, len(lines) + 1)], [])


def _begins_as_json(text: str) -> bool:
    """Whether it is one list or object, or its first line is; prompts may begin with a bracket, too."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    for part in (text.lstrip().split("\n", 1)[0], text):
        try:
            return isinstance(json.loads(part), (dict, list))
        except (ValueError, RecursionError):
            continue
    return False


def _begins_as_table(text: str, known: Collection[str], spaced: bool) -> bool:
    """Whether the first line names columns; ``spaced``: with spaces behind the separators, too, as prose has them."""
    cells = max(_headers(text).values(), key=len)
    if not spaced and any(cell != cell.strip() for cell in cells):
        return False
    return len(cells) > 1 and any(cell.strip().lower() in known for cell in cells)


def _headers(text: str) -> dict[str, list[str]]:
    """The cells of the first line, by the separator that it may have."""
    first = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0].strip()
    return {mark: next(csv.reader([first], delimiter=mark), []) for mark in SEPARATORS}


def _json(text: str, known: Collection[str], on_bad: OnBad) -> Parsed:
    """One list of records, one object that holds such a list or a list for each field, or records one a line."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return _json_lines(text, on_bad)
    if isinstance(whole, dict):
        whole = _records_of(whole, known)
    if isinstance(whole, list) and whole and all(type(each) is int for each in whole):
        whole = [whole]  # a line of token ids
    if not isinstance(whole, list):
        raise ValueError("it holds no records")
    return _named(whole, numbered(whole))


def _records_of(whole: dict[str, Any], known: Collection[str]) -> list[Any]:
    """The records in an object that is the whole of a file: itself, a list in it, or a list for each field."""
    fields = [name for name in whole if name.lower() in known]
    if not fields:
        lists = [key for key in LISTS if isinstance(whole.get(key), list)]
        if len(lists) > 1:
            raise ValueError(f"it holds several lists, {' and '.join(lists)}, of which one has to be a file of its own")
        return whole[lists[0]] if lists else [whole]
    columns = [whole[name] for name in fields]
    texts = all(isinstance(each, list) and all(isinstance(one, str | None) for one in each) for each in columns)
    if texts and len({len(each) for each in columns}) == 1:
        return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]
    return [whole]


def _json_lines(text: str, on_bad: OnBad) -> Parsed:
    values, places = [], []
    for number, line in enumerate(text.split("\n"), 1):  # a line of JSON may hold U+2028, at which splitlines splits
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
            places.append(f"line {number}")
        except (ValueError, RecursionError) as error:
            on_bad(f"line {number}", _reason(error))
    return _named(values, places)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else f"no JSON ({error})"


def _named(values: list[Any], places: list[str]) -> Parsed:
    names = dict.fromkeys(itertools.chain.from_iterable(value for value in values if isinstance(value, dict)))
    return Parsed(values, places, list(names))


def numbered(values: Sized) -> list[str]:
    """The places of records that stand on no line of a file."""
    return [f"record {number}" for number in range(1, len(values) + 1)]


def worth_reading(names: Iterable[str], known: Collection[str], field: str | None) -> list[str]:
    """Of a table that is stored by columns those that may hold something of use, or were asked for."""
    return [name for name in names if name == field or name.lower() in known]


def _parquet(content: bytes, known: Collection[str], field: str | None) -> Parsed:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(io.BytesIO(content)).names
        wanted = worth_reading(names, known, field)
        values = parquet.read_table(io.BytesIO(content), columns=wanted).to_pylist() if wanted else []
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    return Parsed(values, numbered(values), names)


def _table(text: str, field: str | None, on_bad: OnBad) -> Parsed:
    header, rows = read_table(text, field or "", on_bad)
    values, places = [], []
    for line, cells in rows:
        values.append({name: cell or None for name, cell in zip(header, cells, strict=True)})
        places.append(f"line {line}")
    return Parsed(values, places, header)


def refuse(place: str, reason: str) -> None:
    """What is done with a record that is none, unless it shall be passed over."""
    raise ValueError(f"{place}: {reason}")


def read_table(text: str, wanted: str, on_bad: OnBad = refuse) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """A table's header and its rows with their lines, separated by commas, semicolons or tabs, as the header shows.

    Args:
        wanted: a column that is looked for: of the separators, that one is taken by which the header has it.

    Raises:
        ValueError: no header, or a name in it twice; among the rows, quotes that do not close. Where a row has more or
            fewer fields than the header, ``on_bad`` is told.
    """
    headers = _headers(text)
    mark = max(SEPARATORS, key=lambda mark: (wanted in headers[mark], len(headers[mark])))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    header = [name.strip() for name in next((cells for cells in lines if cells), [])]
    if not header:
        raise ValueError("it has no header")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"two columns are named '{twice[0]}'")

    def rows() -> Iterator[tuple[int, list[str]]]:
        began = lines.line_num + 1
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(f"line {began}: {error}") from None
            if cells and len(cells) != len(header):
                counted = f"it has {len(cells)} fields separated by {SEPARATORS[mark]}, the header {len(header)}"
                on_bad(f"line {began}", f"{counted}: quote texts that hold any")
            elif cells:
                yield began, cells
            began = lines.line_num + 1

    return header, rows()
