"""Where files lie that are no code: beside the package in a checkout, inside it where it was installed from a wheel."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# pyproject.toml puts the folders into the wheel; a checkout never has them there.
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS = CHECKOUT / "configs" if CHECKOUT else PACKAGE / "configs"
PAPER_FIGURES = CHECKOUT / "results" / "paper" if CHECKOUT else PACKAGE / "paper_figures"


def environment() -> dict[str, str]:
    """The environment of a Python process that finds this package from whatever folder it is started in."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}
