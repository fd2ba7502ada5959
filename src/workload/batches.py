"""Prompts into batches: shuffled or by length, seeded, and fingerprinted so that only like is compared with like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Batch = NDArray[np.int64]  # indices of the prompts that are served together


def cut(order: NDArray[np.int64], batch_size: int) -> list[Batch]:
    """Cut an order of prompts into batches of ``batch_size``; the last one may be smaller, as in the paper."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def shuffled_batches(num_prompts: int, batch_size: int, seed: int) -> list[Batch]:
    """The batches as requests arrive: in seeded random order. The same for every method that does not reorder."""
    return cut(np.random.default_rng(seed).permutation(num_prompts).astype(np.int64), batch_size)


def length_ordered_batches(lengths: NDArray[np.int64], batch_size: int) -> list[Batch]:
    """All prompts sorted by token length, then cut: needs the whole dataset before the first batch is served."""
    return cut(np.argsort(lengths, kind="stable").astype(np.int64), batch_size)


def fingerprint(
    token_ids: Sequence[NDArray[np.int64]], batches: Sequence[Batch], arrivals_s: NDArray[np.float64] | None = None
) -> str:
    """16 hex digits over all token ids and batch boundaries, of the batches before any method reorders them.

    Args:
        arrivals_s: float64 [n], when each prompt comes, where they do not come together.
    """
    digest = hashlib.sha256()
    if arrivals_s is not None:
        digest.update(np.round(arrivals_s, 9).astype("<f8").tobytes())
    for batch in batches:
        digest.update(f"batch {len(batch)};".encode())
        for index in batch:
            ids = np.ascontiguousarray(token_ids[index], dtype="<i8")
            digest.update(f"prompt {len(ids)};".encode())
            digest.update(ids.tobytes())
    return digest.hexdigest()[:16]
