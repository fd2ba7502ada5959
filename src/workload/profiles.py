"""Length profiles: how many prompts of a real dataset, or of one's own, have how many tokens."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cli import UserError
from . import files, parse
from .forms import LONGEST_PROMPT, MOST_OF_A_FILE

FOLDER = Path(__file__).parent / "length_profiles"
MADE_UP = ("equal", "one-long", "two-lengths", "uniform-800")  # shipped, with lengths of no real dataset


def shipped() -> list[str]:
    """The names of the length profiles that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def read_profile(name: str) -> tuple[NDArray[np.int64], str]:
    """Token lengths of every prompt that a length profile counts, int64 [prompts], and what it is.

    Args:
        name: a shipped profile's name, or the path of a CSV with the columns token_length and count.

    Raises:
        UserError: no such profile, or a row that is not two whole numbers of at least 1.
    """
    path = FOLDER / f"{name}.csv"
    if not path.is_file():
        path = Path(name).expanduser()
    if not path.is_file():
        names = ", ".join(shipped())
        raise UserError("dataset.profile", f"there is no '{name}'", f"choose one of {names}, or a CSV's path")
    try:
        header, lines = parse.read_table(files.decoded(files.contents(path), path.name), "token_length")
        if missing := [name for name in ("token_length", "count") if name not in header]:
            raise ValueError(f"it has no column {missing[0]}")
        places = [header.index(name) for name in ("token_length", "count")]
        rows = [tuple(_whole(cells[place]) for place in places) for _, cells in lines]
        if not rows or min(min(row) for row in rows) < 1:
            raise ValueError("no rows, or a number below 1")
        lengths, counts = zip(*rows, strict=True)
        if max(lengths) > LONGEST_PROMPT:
            raise ValueError(f"a prompt of {max(lengths):,} tokens; {LONGEST_PROMPT:,} are the most")
        if sum(counts) > MOST_OF_A_FILE:
            raise ValueError(f"it counts {sum(counts):,} prompts; {MOST_OF_A_FILE:,} are the most")
    except (OSError, ValueError, csv.Error) as error:
        problem = f"{path.name} is not a length profile ({error})"
        raise UserError("dataset.profile", problem, "columns: token_length,count") from None
    return np.repeat(np.array(lengths, dtype=np.int64), counts), f"profile {path.stem} sha256:{files.file_hash(path)}"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"'{text}' is no whole number") from None
