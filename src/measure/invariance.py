"""Batch invariance: whether a prompt's first token and KV are the same bits whatever it is batched with.

Rounding depends on the shape of a product and on how attention is cut into calls, so the same prompt may come out a
little differently in another batch. Who evaluates models or compares runs wants to know by how much a method does so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..prefilling.method import Engine, Prefilled, TokenIds
from .timer import NoTimer


@dataclass
class Invariance:
    """Prompts whose first token and KV were compared between a batch and the same engine elsewhere.

    Attributes:
        tokens_alone, tokens_other: first tokens that are equal to those of the prompt alone, and in another batch.
        kv_alone, kv_other: keys and values that are equal in every bit, and ``kv``, how many there are.
    """

    prompts: int = 0
    kv: int = 0
    tokens_alone: int = 0
    tokens_other: int = 0
    kv_alone: int = 0
    kv_other: int = 0

    def percent(self, name: str) -> float | None:
        """One of the counts as a share of what was compared, in percent; None where nothing was."""
        whole = self.prompts if name.startswith("tokens") else self.kv
        return 100 * getattr(self, name) / whole if whole else None


@torch.inference_mode()
def invariance(engine: Engine, batches: Sequence[Sequence[TokenIds]]) -> Invariance:
    """Prefill each batch, each of its prompts alone, and its prompts again in two other batches.

    The other batches are every second prompt of it, in reverse: half as many rows, other neighbours, and mostly another
    longest prompt.

    Args:
        engine: made for the ttft metric; one that keeps its KV to itself is judged by first tokens.
    """
    found = Invariance()
    for prompts in batches:
        together = engine.prefill(prompts, NoTimer())
        for number in range(len(prompts)):
            _count(found, "alone", together, number, engine.prefill([prompts[number]], NoTimer()), 0)
            found.prompts += 1
        for first in (0, 1):
            members = list(range(first, len(prompts), 2))[::-1]
            if not members:
                continue
            other = engine.prefill([prompts[number] for number in members], NoTimer())
            for place, number in enumerate(members):
                found.kv += _count(found, "other", together, number, other, place)
    return found


def _count(found: Invariance, name: str, one: Prefilled, at: int, other: Prefilled, place: int) -> int:
    """Count what is equal of a prompt that is ``at`` in one batch and ``place`` in another; its keys and values."""
    assert one.first_tokens is not None
    assert other.first_tokens is not None
    same = one.first_tokens[at] == other.first_tokens[place]
    setattr(found, f"tokens_{name}", getattr(found, f"tokens_{name}") + int(same))
    compared = equal = 0
    if one.cache is None or other.cache is None:
        return 0
    for mine, theirs in zip(_kv(one, at), _kv(other, place), strict=True):
        compared += mine.numel()
        equal += int((mine == theirs).sum())
    setattr(found, f"kv_{name}", getattr(found, f"kv_{name}") + equal)
    return compared


def _kv(done: Prefilled, number: int) -> list[torch.Tensor]:
    """Keys and values of a prompt, layer by layer, without pads."""
    assert done.cache is not None
    assert done.mask is not None
    held = done.mask[number].nonzero()[:, 0]
    return [getattr(layer, name)[number][:, held] for layer in done.cache.layers for name in ("keys", "values")]
