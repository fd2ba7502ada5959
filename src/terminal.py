"""Printing around the line of progress, which stands below whatever else a terminal shows and is redrawn in place.

One process draws the line (``jobs/progress.py``) while another measures. Both make room here before they print, so that
neither writes into the line: it is wiped, and comes back below when it is next drawn.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

WIPE = "\r\033[K"  # to the start of the line, and erase it
_shown = False


def progress_shown() -> bool:
    """Whether a line of progress stands on the terminal, drawn by this process or the one that started it."""
    return _shown


def quiet() -> bool:
    """Whether tables are left to the report: the line says what came out, and they would only scroll by above it."""
    return _shown and sys.stdout.isatty()


@contextlib.contextmanager
def progress_line(shown: bool = True) -> Iterator[None]:
    """While this lasts, a line of progress stands on the terminal, if ``shown``."""
    global _shown
    before, _shown = _shown, shown
    try:
        yield
    finally:
        _shown = before


def make_room() -> None:
    """Wipe the line of progress, so that what is printed next begins on a line of its own."""
    if _shown:
        sys.stderr.write(WIPE)
        sys.stderr.flush()


def say(*lines: str) -> None:
    """Print lines on standard output, above the line of progress where there is one."""
    make_room()
    try:
        print(*lines, sep="\n", flush=True)
    except OSError:  # whoever read it has left, as `| head` does, or its disk is full: what is measured is recorded
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
