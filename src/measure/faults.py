"""The measuring faults of the authors' published code, each by name, so that what each is worth can be measured.

They are never on by default, a record made with one says so and is not VALID, and no clean record is compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..cli import UserError
from ..config import FAULT_NEEDS, FAULTS, REFERENCE
from ..prefilling.method import Method, batches_of_bins
from ..prefilling.packing import Bins
from ..workload.batches import Batch, cut
from ..workload.prompts import Prompts


def resolve(asked: Sequence[str], protocol: str, metric: str) -> tuple[str, ...]:
    """The faults that are on, in the order of their list; ``reference`` stands for all that have an effect."""
    needs = {name: FAULT_NEEDS.get(name, (protocol, metric))[:2] for name in FAULTS}
    return tuple(name for name in FAULTS if name in asked or (REFERENCE in asked and needs[name] == (protocol, metric)))


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


def reshuffled(
    method: Method, batches: Sequence[Batch], bins: Sequence[Bins] | None, batch_size: int, seed: tuple[int, ...]
) -> tuple[list[Batch], list[Bins] | None]:
    """A method's batches of one repeat under ``own-shuffle``: other ones, unless it sorts its prompts.

    Where the whole dataset was packed, its bins are shuffled, and the prompts within a bin stay together.

    Args:
        batches, bins: those that the comparison began with.
        seed: other for each method and repeat.
    """
    rng = np.random.default_rng(seed)
    if bins is None:
        if method.needs_dataset:
            return list(batches), None
        return cut(rng.permutation(np.concatenate(list(batches))), batch_size), None
    members = [batch[bin_] for batch, of_batch in zip(batches, bins, strict=True) for bin_ in of_batch]
    return batches_of_bins([members[index] for index in rng.permutation(len(members))], batch_size)
