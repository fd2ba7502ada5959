"""Opens a page in the browser, where there is one that can show it."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from .cli import warn

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # on Linux; BROWSER names what the user wants to have opened


def open_page(page: Path) -> bool:
    """Open a page in the browser, or say in one line where it is. Whether it was opened."""
    opened = False
    # Without a screen, webbrowser would start a browser of text in the middle of the terminal.
    if sys.platform in {"darwin", "win32"} or any(map(os.environ.get, SCREENS)):
        try:
            opened = webbrowser.open(page.resolve().as_uri())
        except (webbrowser.Error, OSError):
            opened = False
    if not opened:
        warn(f"no browser can be opened here; the page is {page.resolve()}")
    return opened
