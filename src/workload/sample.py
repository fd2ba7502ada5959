"""Which prompts of a dataset are measured, and in which order: ours, seeded, or the very ones that the authors drew."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cli import warn

AUTHORS_SEED = 42


@dataclass(frozen=True)
class Selection:
    """Places in a dataset, int64 [n], and where it is given the order in which batches are cut from them, int64 [n]."""

    chosen: NDArray[np.int64]
    order: NDArray[np.int64] | None = None


def follow(available: int, wanted: int, rng: np.random.Generator) -> Selection:
    """``wanted`` prompts that follow each other, from a seeded place on, in their order; all, with a note, of fewer."""
    if wanted > available:
        warn(f"num_prompts={wanted:,}, but only {available:,} prompts are usable: all of them are used")
    first = int(rng.integers(0, max(1, available - wanted + 1)))
    chosen = np.arange(first, min(first + wanted, available), dtype=np.int64)
    return Selection(chosen, np.arange(len(chosen), dtype=np.int64))


def draw(available: int, wanted: int, rng: np.random.Generator, sample: str = "own") -> Selection:
    """Draw ``wanted`` of ``available`` prompts without repetition; all of them, with a note, where there are fewer.

    Args:
        rng: of our own sample.
        sample: ``own``; or ``authors``: Python's generator seeded with 42 draws the sample, and goes on to shuffle it
            for the first pass of their first method (dataset_utils.py, ``random.sample`` and ``random.shuffle``).
    """
    if wanted > available:
        warn(f"num_prompts={wanted:,}, but only {available:,} prompts are usable: all of them are used")
    if sample == "own":
        return Selection(rng.permutation(available)[:wanted])
    generator = random.Random(AUTHORS_SEED)
    chosen = generator.sample(range(available), min(wanted, available))
    order = list(range(len(chosen)))
    generator.shuffle(order)
    return Selection(np.array(chosen, dtype=np.int64), np.array(order, dtype=np.int64))
