"""Attention in which each prompt sees itself alone: by segment, without any mask, or by the paper's dense mask.

Tokens of all rows stand in one flat line, and a *segment* is a span of it that attends causally within itself: a
prompt, or a padded row. On a GPU in half precision one variable-length kernel serves all segments; elsewhere segments
of like length are batched into one call of scaled-dot-product attention, padded on the right, where causality needs no
mask.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

Ints = NDArray[np.int64]

# One more attention call costs about as much as this many query-key pairs. A group of its own is worth it only if it
# saves more than that in padding.
CALL_COSTS_PAIRS = 64 * 64
# A call copies its inputs and outputs; limiting its tokens limits that extra memory.
CALL_TOKENS = 2048


def independent_mask(segments: torch.Tensor, sliding_window: int | None = None) -> torch.Tensor:
    """Block-diagonal causal mask of packed rows (the paper, section 3.1), true where a query may see a key.

    Pads (segment -1) form a segment of their own, so that every query sees a key and softmax stays finite.

    Args:
        segments: int [rows, width], the prompt's number, -1 on pads. A prompt's tokens are contiguous.
        sliding_window: a query sees this many keys at most, itself included; None for all before it.

    Returns:
        bool [rows, 1, width, width], for scaled-dot-product attention. (Eager attention would add a bool mask to
        the scores and be silently wrong.)
    """
    width = segments.shape[-1]
    column = torch.arange(width, device=segments.device)
    distance = column[:, None] - column[None, :]
    allowed = distance >= 0
    if sliding_window is not None:
        allowed &= distance < sliding_window
    return ((segments[:, :, None] == segments[:, None, :]) & allowed)[:, None]


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
class Segments:
    """All segments of a forward, ready on the device: grouped for SDPA, or as offsets for the variable-length kernel.

    Attributes:
        offsets: int32 [segments + 1], the cumulated lengths over the whole line, pads as segments of their own; None
            where groups are used.
    """

    groups: list[Group]
    offsets: torch.Tensor | None
    longest: int
    window: int | None

    @property
    def spare_rows(self) -> int:
        """How many rows the line needs behind its tokens: one that the right pads of groups read and write, or none."""
        return 1 if self.offsets is None else 0

    @property
    def kernel(self) -> str:
        """What serves: ``varlen`` or ``segments``."""
        return "segments" if self.offsets is None else "varlen"

    def to(self, device: torch.device) -> Segments:
        """A copy on the device; transfers do not wait."""
        move: dict[str, Any] = {"device": device, "non_blocking": True}
        groups = [
            group if group.index is None else replace(group, index=group.index.to(**move)) for group in self.groups
        ]
        return replace(self, groups=groups, offsets=None if self.offsets is None else self.offsets.to(**move))


def pick_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """``varlen`` on CUDA in half precision where torch has it, else ``segments``, which runs everywhere."""
    if device.type != "cuda" or dtype not in {torch.float16, torch.bfloat16}:
        return "segments"
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return "segments"
    return "varlen"


def plan_segments(starts: Ints, lengths: Ints, tokens: int, window: int | None, kernel: str) -> Segments:
    """Prepare attention over segments on the host.

    Args:
        starts, lengths: int64 [segments], spans of the flat line, in ascending order, not overlapping.
        tokens: length of the line; what no segment covers is padding and attends to nothing that matters.
        window: sliding window in tokens, None without.
        kernel: as ``pick_kernel`` gives it.
    """
    longest = int(lengths.max())
    if kernel == "varlen":
        ends = np.unique(np.concatenate([[0], starts, starts + lengths, [tokens]]))
        longest = int(np.diff(ends).max())
        return Segments([], torch.from_numpy(ends.astype(np.int32)), longest, window)
    groups = []
    for members in calls_of(lengths.tolist()):
        size = lengths[members]
        width = int(size.max())
        end_to_end = bool((size == width).all() and (np.diff(starts[members]) == width).all())
        index = None
        if not end_to_end:
            column = np.arange(width)
            index = torch.from_numpy(np.where(column < size[:, None], starts[members, None] + column, tokens))
        groups.append(Group(index, int(starts[members[0]]), len(members), width))
    return Segments(groups, None, longest, window)


def attend(
    qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, segments: Segments, out: torch.Tensor
) -> torch.Tensor:
    """Causal attention within each segment.

    Args:
        qkv: [tokens + spare rows, heads + 2 * kv_heads, head_dim], queries, keys and values side by side.
        out: [tokens + spare rows, heads * head_dim], which groups are written into; rows that none covers are left as
            they are.

    Returns:
        What was attended, as ``out`` has it: ``out`` itself, or the variable-length kernel's own output.
    """
    if segments.offsets is not None:
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        return _varlen(q, k, v, scale, segments).flatten(1)
    for group in segments.groups:
        q, k, v = group.take(qkv).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
        if segments.window is not None and group.width > segments.window:
            found = _windowed(q, k, v, scale, segments.window)
        else:
            found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=heads != kv_heads)
        group.put(out, found.transpose(1, 2).flatten(2))
    return out


def _windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> torch.Tensor:
    """Causal attention within a sliding window, in blocks of queries as long as the window: masks stay [W, 2 W]."""
    width, found = q.shape[2], []
    for start in range(0, width, window):
        end, first = min(start + window, width), max(0, start - window + 1)
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


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, segments: Segments) -> torch.Tensor:
    """One kernel over all segments: [tokens, heads, head_dim] each; the last dimension has to be contiguous."""
    from torch.nn.attention.varlen import varlen_attn

    assert segments.offsets is not None
    grouped: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouped["enable_gqa"] = True
        else:  # torch 2.11 and 2.12: keys and values once for each query head
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    found = varlen_attn(
        q, k, v, segments.offsets, segments.offsets, segments.longest,
        segments.longest, scale=scale, window_size=((segments.window or 0) - 1, 0), **grouped,
    )  # fmt: skip
    assert isinstance(found, torch.Tensor)
    return found


@contextlib.contextmanager
def by_segments(model: PreTrainedModel) -> Iterator[None]:
    """Have the model's own forward attend by segment, which it is then given as ``segments=``."""
    AttentionInterface.register("segments", _own_attention)
    # Without it, masks of another call (padded generation) would be silently wrong under this name.
    AttentionMaskInterface.register("segments", sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation("segments")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _own_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    scaling: float, segments: Segments, sliding_window: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What transformers calls in each layer: queries [rows, heads, width, head_dim], keys and values alike.

    The window is the layer's own, as some models have it in some layers only.
    """
    (rows, heads, width, head_dim), kv_heads = query.shape, key.shape[1]
    tokens, segments = rows * width, replace(segments, window=sliding_window)
    line = query.new_zeros(tokens + segments.spare_rows, heads + 2 * kv_heads, head_dim)
    line[:tokens] = torch.cat([query, key, value], dim=1).transpose(1, 2).flatten(0, 1)
    out = query.new_zeros(len(line), heads * head_dim)
    out = attend(line, heads, kv_heads, scaling, segments, out)
    return out[:tokens].view(rows, width, heads, head_dim), None
