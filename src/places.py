"""Where files lie that are no code: beside the package in a checkout, inside it where it was installed from a wheel."""

from __future__ import annotations

import os
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
NAME = __name__.partition(".")[0]  # of the package: src in a checkout, prepack_bench where it is installed
# pyproject.toml puts the folders into the wheel; a checkout never has them there.
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS = CHECKOUT / "configs" if CHECKOUT else PACKAGE / "configs"
ADDED_METHODS = PACKAGE / "prefilling" / "added"
PAPER_FIGURES = CHECKOUT / "results" / "paper" if CHECKOUT else PACKAGE / "paper_figures"


def environment() -> dict[str, str]:
    """The environment of a Python process that finds this package from whatever folder it is started in."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def command_line(name: str) -> str:
    """How a command of this package is typed: ``python -m src.run`` in a checkout, ``prepack run`` elsewhere."""
    return f"prepack {name}" if CHECKOUT is None else f"python -m {NAME}.{name}"


def slug(name: str) -> str:
    """A device's name as that of a folder: lower case, no spaces."""
    return re.sub(r"[^a-z0-9]+", "-", name.replace("(R)", "").replace("(TM)", "").lower()).strip("-")
