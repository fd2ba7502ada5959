"""All methods by name: those of this package, and those that were added, one file each in ``added/``."""

from __future__ import annotations

import importlib
from dataclasses import replace

from ..cli import UserError
from ..config import ADDED
from .method import Method

BASELINE, ORDERED = "full-batching", "length-ordered"


def _added(name: str) -> Method:
    """The method that a file of src/prefilling/added/ holds.

    Raises:
        UserError: it holds none, or one of another name.
    """
    file = f"{name.replace('-', '_')}.py"
    method = getattr(importlib.import_module(f"{__package__}.added.{file.removesuffix('.py')}"), "METHOD", None)
    if not isinstance(method, Method) or method.name != name:
        raise UserError(
            f"src/prefilling/added/{file}", "it holds no such method", f"give it METHOD = Method('{name}', …)"
        )
    return method


METHODS = {
    method.name: method
    for method in (
        Method("full-batching"),
        Method("length-ordered", needs_dataset=True),
        Method("prepacking", rows="bin"),
        Method("dataset-prepacking", rows="bin", needs_dataset=True, packs_dataset=True),
        Method("padding-free", rows="batch"),
        Method("continuous-batching", rows="batch", serves=True),
        Method("vllm", rows="batch", serves=True, external=True),
        *map(_added, ADDED),
    )
}


def method_of(name: str) -> Method:
    """A method, or one with an attention kernel of its own (``padding-free+flex``), by name.

    A record's method that this source tree does not have counts as a plain one.
    """
    known, plus, kernel = name.partition("+")
    method = METHODS.get(known) or Method(known)
    return replace(method, name=name, attention=kernel) if plus else method
