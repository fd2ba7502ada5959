"""Attention by segment: segments of like length in one call of scaled-dot-product attention, padded on the right.

Causality needs no mask there, for nothing attends to what comes behind it. It runs everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from .spans import Attention, Spans

NAME = "segments"
WORDS = "by segment, SDPA"
# One more attention call costs about as much as this many query-key pairs. A group of its own is worth it only if it
# saves more than that in padding.
CALL_COSTS_PAIRS = 64 * 64
# A call copies its inputs and outputs; limiting its tokens limits that extra memory.
CALL_TOKENS = 2048


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve: never."""
    return None


def groups_of(lengths: Sequence[int]) -> list[list[int]]:
    """Which segments go into one attention call, so that padding to the longest of a call and calls cost least.

    Exact for the cost model calls * CALL_COSTS_PAIRS + sum over calls of segments * longest ** 2: sorted by length, a
    best partition is contiguous, and dynamic programming over the distinct lengths finds it.

    Returns:
        Indices into ``lengths``, by ascending length.
    """
    distinct, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    best, cut = np.zeros(len(distinct) + 1), np.zeros(len(distinct) + 1, dtype=np.int64)
    for end, longest in enumerate(distinct, 1):
        cost = best[:end] + CALL_COSTS_PAIRS + (before[end] - before[:end]) * float(longest) ** 2
        cut[end] = int(cost.argmin())
        best[end] = cost[cut[end]]
    order = np.argsort(lengths, kind="stable")
    groups, end = [], len(distinct)
    while end:
        groups.append(order[before[cut[end]] : before[end]].tolist())
        end = int(cut[end])
    return groups[::-1]


def calls_of(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The groups of ``groups_of``, cut so that a call takes ``CALL_TOKENS`` at most, or one segment."""
    for members in groups_of(lengths):
        most = max(1, CALL_TOKENS // lengths[members[-1]])
        for start in range(0, len(members), most):
            yield members[start : start + most]


@dataclass(frozen=True)
class Group:
    """Segments of like length that one attention call serves.

    Attributes:
        index: int64 [segments, width] into the flat line, right-padded with the number of the spare row behind it; None
            where the segments lie end to end and are equally long, so that a view of the line serves.
        start: where the first segment begins, for such a view.
        count, width: segments, and tokens of the longest.
    """

    index: torch.Tensor | None
    start: int
    count: int
    width: int

    def take(self, line: torch.Tensor) -> torch.Tensor:
        """The group's rows of ``line`` [tokens + 1, …] as [segments, width, …]."""
        if self.index is None:
            flat = line[self.start : self.start + self.count * self.width]
        else:
            flat = line.index_select(0, self.index.view(-1))
        return flat.unflatten(0, (self.count, self.width))

    def put(self, line: torch.Tensor, values: torch.Tensor) -> None:
        """Write [segments, width, …] back; what belongs to right pads goes to the spare row."""
        if self.index is None:
            line[self.start : self.start + self.count * self.width] = values.flatten(0, 1)
        else:
            line.index_copy_(0, self.index.view(-1), values.flatten(0, 1))


@dataclass(frozen=True)
class Segments(Attention):
    """Segments, grouped.

    The line needs one spare row behind its tokens, which the right pads of groups read and write.
    """

    groups: list[Group]
    pairs: int
    spare_rows: int = 1

    @property
    def calls(self) -> int:  # type: ignore[override]
        """One for each group."""
        return len(self.groups)

    @property
    def gathered(self) -> int:  # type: ignore[override]
        """The tokens of groups that no view serves, the pads of the shorter ones included."""
        return sum(group.count * group.width for group in self.groups if group.index is not None)

    def to(self, device: torch.device) -> Segments:
        """A copy on the device; transfers do not wait."""
        moved = [
            group if group.index is None else replace(group, index=group.index.to(device, non_blocking=True))
            for group in self.groups
        ]
        return replace(self, groups=moved)

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        for group in self.groups:
            q, k, v = group.take(qkv).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
            if window is not None and group.width > window:
                found = _windowed(q, k, v, scale, window)
            else:
                found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != kv_heads)
            group.put(out, found.transpose(1, 2).flatten(2))
        return out


def plan(spans: Spans) -> Segments:
    """Group the segments."""
    groups, starts = [], spans.starts
    for members in calls_of(spans.lengths.tolist()):
        size = spans.lengths[members]
        width = int(size.max())
        end_to_end = bool((size == width).all() and (np.diff(starts[members]) == width).all())
        index = None
        if not end_to_end:
            column = np.arange(width)
            index = torch.from_numpy(np.where(column < size[:, None], starts[members, None] + column, spans.tokens))
        groups.append(Group(index, int(starts[members[0]]), len(members), width))
    return Segments(groups, sum(group.count * _pairs(group.width, spans.widest) for group in groups))


def _blocks(width: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Blocks of queries as long as the window: where each begins and ends, and the first key that it sees."""
    for start in range(0, width, window):
        yield start, min(start + window, width), max(0, start - window + 1)


def _pairs(width: int, window: int | None) -> int:
    """Query-key pairs that are computed of a segment, its pads among them."""
    if window is None or width <= window:
        return width * (width + 1) // 2
    return sum((end - start) * (end - first) for start, end, first in _blocks(width, window))


def _windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """Causal attention within a sliding window, in blocks of queries as long as the window: masks stay [W, 2 W]."""
    found = []
    for start, end, first in _blocks(q.shape[2], window):
        distance = torch.arange(start, end, device=q.device)[:, None] - torch.arange(first, end, device=q.device)
        found.append(
            scaled_dot_product_attention(
                q[:, :, start:end],
                k[:, :, first:end],
                v[:, :, first:end],
                attn_mask=(distance >= 0) & (distance < window),
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(found, dim=2)
