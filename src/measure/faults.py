"""The measuring faults of the authors' published code, each by name, so that what each is worth can be measured.

They are never on by default, a record made with one says so and is not VALID, and no clean record is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..cli import UserError
from ..config import FAULTS, REFERENCE
from ..workload.prompts import Prompts


def resolve(asked: Sequence[str]) -> tuple[str, ...]:
    """The faults that are on, in the order of their list; ``reference`` stands for all of them."""
    return tuple(name for name in FAULTS if name in asked or REFERENCE in asked)


def ordering_lengths(active: Sequence[str], prompts: Prompts, explicit: bool) -> NDArray[np.int64]:
    """What length-ordered batching sorts by: tokens, or characters under ``sort-by-characters``.

    Args:
        explicit: the fault was asked for by its own name. ``reference`` leaves it out where there is no text.

    Raises:
        UserError: asked for by name, with prompts that have no text.
    """
    if "sort-by-characters" not in active:
        return prompts.lengths
    if prompts.texts is None:
        if explicit:
            raise UserError(
                "faults", "sort-by-characters needs prompts with text", "use dataset=file or dataset.source=hub"
            )
        return prompts.lengths
    return np.array([len(text) for text in prompts.texts], dtype=np.int64)
