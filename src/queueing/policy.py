"""What a policy is: it says, whenever the device is free, which of those who wait go into the next batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cli import UserError
from ..prefilling.method import Method, Pack

Choose = Callable[[Sequence[int], float], Sequence[int]]
"""Of the numbers of those who wait (at least one, in the order of their arrival) and the time in seconds, those that go
into the next batch (at least one). It is not asked to wait for a fuller batch: no device idles while a prompt waits."""


@dataclass(frozen=True)
class Rules:
    """What a policy may know.

    Attributes:
        method: how the batch will be computed.
        lengths: int64 [n], tokens of every prompt, by its number.
        arrivals_s: float64 [n], when each arrives, ascending seconds.
        batch_size: most prompts of a batch.
        pack: how prompts are packed, for methods that pack.
        token_budget: most tokens of a batch, of token-budget.
        lookahead: how many of those who wait are looked at, of lookahead.
        buckets: the lengths at which buckets end, ascending, of buckets.
        ageing: tokens that a second of waiting is worth, of shortest-first.
    """

    method: Method
    lengths: NDArray[np.int64]
    arrivals_s: NDArray[np.float64]
    batch_size: int
    pack: Pack
    token_budget: int
    lookahead: int
    buckets: tuple[int, ...]
    ageing: float


def chooser(name: str, rules: Rules) -> Choose:
    """The policy of a name, with a check of what it chooses.

    Raises:
        UserError: its file holds no policy, or it chooses nobody, somebody twice, or somebody who does not wait.
    """
    file = f"src/queueing/policies/{name.replace('-', '_')}.py"
    make = getattr(importlib.import_module(f"{__package__}.policies.{name.replace('-', '_')}"), "make", None)
    if not callable(make):
        raise UserError(file, "it holds no policy", "give it make(rules), which returns the function that chooses")
    choose: Choose = make(rules)

    def checked(waiting: Sequence[int], now_s: float) -> Sequence[int]:
        chosen = choose(waiting, now_s)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(waiting):
            raise UserError(file, f"of {len(waiting)} who wait it chose {list(chosen)[:9]}", "choose some, each once")
        return chosen

    return checked


def bounds(buckets: int | Sequence[int], lengths: NDArray[np.int64]) -> tuple[int, ...]:
    """Where buckets end, ascending: as given, or so that each of so many holds as many of the prompts.

    Args:
        lengths: int64 [n], of all prompts: a server would know their distribution from earlier ones.
    """
    if not isinstance(buckets, int):
        return tuple(buckets)
    ends = np.quantile(lengths, np.arange(1, buckets + 1) / buckets, method="higher")
    return tuple(sorted({int(end) for end in ends}))
