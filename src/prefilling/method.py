"""What a method, an engine and the result of a prefill are: the vocabulary that all engines share.

Nothing here imports torch, so that a report or ``--help`` can name methods at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..workload.batches import Batch, length_ordered_batches
from .packing import Bins, first_fit_decreasing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache

PHASES = ("tokenize", "plan", "mask", "transfer", "forward", "unpack", "decode")
TokenIds = NDArray[np.int64]
Pack = Callable[[Sequence[int], int], Bins]


class Timer(Protocol):
    """A timer of phases: ``lap`` ends the phase that began at the lap before it."""

    def lap(self, phase: str) -> None: ...


@dataclass(frozen=True)
class Method:
    """A batching strategy.

    Attributes:
        rows: what shares a row of the forward: ``prompt`` (each its own, padded), ``bin`` (packed to the longest
            prompt), or ``batch`` (all prompts in one row, no padding).
        needs_dataset: an offline oracle, which needs all prompts before its first batch, and so has batches of its own
            (``batches``).
        packs_dataset: an offline oracle that packs all prompts into bins at once (``rows="bin"``), so that a batch is
            as many bins as its size says, and ``batches`` is not asked.
        serves: a serving engine, which orders, batches and caches by rules of its own.
        external: another process computes it, with weights of its own: nothing to verify it against, and counters of
            this process do not see it.
        attention: its attention kernel, whatever the setting ``attention`` says; None: as that says.
        engine: makes the engine of a method that needs its own; None for the engines of this package.
    """

    name: str
    rows: str = "prompt"
    needs_dataset: bool = False
    packs_dataset: bool = False
    serves: bool = False
    external: bool = False
    attention: str | None = None
    engine: Callable[[PreTrainedModel, PrefillOptions], Engine] | None = None

    @property
    def packs(self) -> bool:
        """Whether prompts share rows, so that their KV has to be unpacked."""
        return self.rows != "prompt"

    def batches(self, shuffled: list[Batch], lengths: NDArray[np.int64], batch_size: int) -> list[Batch]:
        """This method's batches over the dataset: the shuffled ones, unless it needs the dataset to make its own."""
        return length_ordered_batches(lengths, batch_size) if self.needs_dataset else shuffled


def dataset_bins(lengths: NDArray[np.int64], batch_size: int, pack: Pack) -> tuple[list[Batch], list[Bins]]:
    """Pack the whole dataset into bins as long as its longest prompt, ``batch_size`` bins a batch (the paper, 4.3).

    Returns:
        For each batch its prompts, and its bins as places within them.
    """
    bins = pack(lengths.tolist(), int(lengths.max()))
    return batches_of_bins([np.array(bin_, dtype=np.int64) for bin_ in bins], batch_size)


def batches_of_bins(bins: Sequence[Batch], batch_size: int) -> tuple[list[Batch], list[Bins]]:
    """Cut bins into batches of ``batch_size`` bins.

    Args:
        bins: the numbers of each bin's prompts.

    Returns:
        For each batch its prompts, and its bins as places within them.
    """
    batches, places = [], []
    for start in range(0, len(bins), batch_size):
        members = bins[start : start + batch_size]
        batches.append(np.concatenate(members))
        ends = np.cumsum([len(bin_) for bin_ in members]).tolist()
        places.append([list(range(end - len(bin_), end)) for bin_, end in zip(members, ends, strict=True)])
    return batches, places


@dataclass(frozen=True)
class PrefillOptions:
    """How a batch is prefilled, whatever the method.

    Attributes:
        metric: ``prefill`` or ``ttft``.
        protocol: ``paper`` does what the authors' code does: the model's own forward with left padding and dense
            masks, logits at every position; prepacking leaves out each prompt's last token, does not unpack for the
            prefill metric, and for TTFT gets the first token from one further decode step. ``modern`` does identical
            work for all methods: one forward without masks, logits at each prompt's last position, the first token
            read from them, every prompt's KV in a padded cache.
        pack: lengths and capacity to bins.
        forward: ``fused``, ``compiled``, ``graphs`` or ``transformers``, of the modern protocol.
        max_tokens: of one forward; a batch of more is computed by parts of whole rows (padding-free: whole
            prompts); None: at once. Only under ``modern``.
        attention: the attention kernel, a name of ``attention.kernels``, or ``auto``; of the modern protocol.
        numerics: under ``paper``, ``own``: fast steps and types of ours; ``authors``: theirs.
        keeps_logits: under ``paper``, return the logits of every position too, which the authors' loop keeps.
    """

    metric: str = "ttft"
    protocol: str = "modern"
    pack: Pack = first_fit_decreasing
    forward: str = "fused"
    max_tokens: int | None = None
    keeps_logits: bool = False
    numerics: str = "own"
    attention: str = "auto"


@dataclass(frozen=True)
class Prefilled:
    """What a prefill leaves behind.

    Attributes:
        cache: per layer keys and values [k, kv_heads, longest, head_dim]; packed as the forward left it where the
            metric does not ask for unpacking (``paper`` prefill); None where a serving engine keeps it to itself.
        mask: int64 [k, longest], 1 where the cache holds a prompt's token; None where the cache is packed, or None.
        logits: [k, vocab] at each prompt's last token; None where the last token is left out (``paper`` prefill of
            prepacking).
        first_tokens: the first new token of each prompt, on the host; None for the prefill metric.
        computed_tokens: token positions that passed through the model, pads included.
        rows: rows of the forward: prompts for padded methods, bins for prepacking.
        attention_pairs: query-key pairs that attention computed in each head of a layer (with the widest sliding
            window); None where that is not known.
        every_logit: [rows, width, vocab] where ``keeps_logits`` asks for them.
        measured_seconds: the batch's time, where another process computed it and read its own clock.
    """

    cache: DynamicCache | None
    mask: torch.Tensor | None
    logits: torch.Tensor | None
    first_tokens: list[int] | None
    computed_tokens: int
    rows: int
    every_logit: torch.Tensor | None = None
    attention_pairs: int | None = None
    measured_seconds: float | None = None


@runtime_checkable
class Serving(Protocol):
    """An engine that takes prompts one by one, as they come, and forms batches by rules of its own."""

    def serve(self, prompts: Sequence[TokenIds], arrivals_s: Sequence[float] | NDArray[np.float64]) -> list[float]:
        """Serve prompts in real time, one new token each.

        Args:
            prompts: int64 [length] each.
            arrivals_s: when each is handed over, ascending seconds from the call on.

        Returns:
            When the first token of each was there, seconds from the call on.
        """
        ...


class Engine(Protocol):
    """Prefills batches; made once for a method, verified, then timed.

    Attributes:
        attention: how attention is kept within prompts, in words.
    """

    attention: str

    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """Prefill one batch, ending every phase with ``t.lap``.

        Args:
            prompts: int64 [length] each, at least one token each.
            bins: the batch's bins where the whole dataset was packed beforehand; None: the method packs.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...
