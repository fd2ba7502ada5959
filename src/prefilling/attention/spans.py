"""What an attention kernel is given: the segments of a line of tokens; and what it makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import profiler

from ..layout import Part
from ..shape import causal_pairs, widest_of

Ints = NDArray[np.int64]
SPAN, SPAN_OF_TORCH = "attention of a layer", "operators of torch"  # names in a profile


@dataclass(frozen=True)
class Spans:
    """The segments of a forward, on the host.

    Attributes:
        starts, lengths: int64 [segments], spans of the flat line, in ascending order, not overlapping. What none covers
            is padding, and attends to nothing that matters.
        rows, width: the line before it was laid end to end: ``rows * width`` tokens, and no segment crosses a row.
        windows: sliding windows of the model's layers, in tokens; None for a layer without one.
    """

    starts: Ints
    lengths: Ints
    rows: int
    width: int
    windows: tuple[int | None, ...] = (None,)

    @property
    def widest(self) -> int | None:
        """The widest of the windows; None where a layer has none."""
        return widest_of(self.windows)

    @property
    def tokens(self) -> int:
        """Tokens of the line."""
        return self.rows * self.width

    @property
    def offsets(self) -> Ints:
        """Where segments begin and end, int64 [segments + 1], pads as segments of their own."""
        return np.unique(np.concatenate([[0], self.starts, self.starts + self.lengths, [self.tokens]]))

    @property
    def numbers(self) -> Ints:
        """The segment of each token, int64 [tokens], -1 on pads."""
        found = np.full(self.tokens, -1, dtype=np.int64)
        for number, (start, length) in enumerate(zip(self.starts.tolist(), self.lengths.tolist(), strict=True)):
            found[start : start + length] = number
        return found


class Attention(ABC):
    """Segments made ready for one kernel.

    Attributes:
        pairs: query-key pairs that it computes in a head of a layer with the widest window; kernels that leave out by
            blocks what lies above the diagonal or behind the window are counted as if they did so by pairs.
        spare_rows: how many rows the line needs behind its tokens.
        calls: of the kernel, for a layer.
        gathered: tokens whose queries, keys and values are brought together before them.
        operator: the name of a kernel in a profile that is none of torch's operators.
    """

    pairs: int
    calls: int = 1
    gathered: int = 0
    spare_rows: int = 0
    operator: str | None = None

    @abstractmethod
    def to(self, device: torch.device) -> Attention:
        """A copy on the device; transfers do not wait.

        In a model that is split, accelerate calls this before each layer, so that what ``made`` made moves along.
        """

    def made(self) -> Attention:
        """With what is made on the device, a mask for example; by most kernels nothing is."""
        return self

    def attend(
        self,
        qkv: torch.Tensor,
        heads: int,
        kv_heads: int,
        scale: float,
        out: torch.Tensor,
        window: int | None = None,
    ) -> torch.Tensor:
        """Causal attention within each segment.

        Args:
            qkv: [lines, heads + 2 * kv_heads, head_dim], queries, keys and values side by side; as many lines as there
                are tokens and spare rows, on a CPU up to 15 more.
            out: [lines, heads * head_dim], which a kernel may write into; rows that no segment covers
                are left as they are.
            window: a query sees this many keys at most, itself included; None: all before it.

        Returns:
            What was attended, as ``out`` has it: ``out`` itself, or the kernel's own output.
        """
        if not profiler._is_profiler_enabled:
            return self._attend(qkv, heads, kv_heads, scale, out, window)
        with profiler.record_function(SPAN), profiler.record_function(self.operator or SPAN_OF_TORCH):
            return self._attend(qkv, heads, kv_heads, scale, out, window)

    @abstractmethod
    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class ByOffsets(Attention):
    """Segments as offsets, for kernels that serve all of them in one call.

    Attributes:
        offsets: int32 [segments + 1], the cumulated lengths over the whole line, pads as segments of their own.
        longest: tokens of the longest segment.
    """

    offsets: torch.Tensor
    longest: int
    pairs: int

    @classmethod
    def of(cls, spans: Spans) -> Self:
        """Take the offsets."""
        offsets = spans.offsets
        lengths = np.diff(offsets)
        return cls(torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()), causal_pairs(lengths, spans.widest))

    def to(self, device: torch.device) -> Self:
        """A copy on the device; transfers do not wait."""
        return replace(self, offsets=self.offsets.to(device, non_blocking=True))


def half_precision_on_cuda(what: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel of half precision on CUDA cannot serve; None where it can."""
    if device.type != "cuda":
        return f"{what} runs on CUDA alone; use attention=segments"
    if dtype not in {torch.float16, torch.bfloat16}:
        return f"{what} has no {str(dtype).removeprefix('torch.')}; use dtype=bfloat16"
    return None


def spans_of(part: Part, lengths: Sequence[int], packs: bool, windows: tuple[int | None, ...] = (None,)) -> Spans:
    """What attends within itself in a part of a batch: prompts where they share rows, else whole rows.

    Args:
        lengths: tokens of each prompt of the batch.
    """
    number = len(part.rows)
    if not packs:
        return Spans(np.arange(number) * part.width, np.full(number, part.width), number, part.width, windows)
    size = np.array([lengths[prompt] for row in part.rows for prompt in row], dtype=np.int64)
    ends = [np.cumsum([lengths[prompt] for prompt in row]) + place * part.width for place, row in enumerate(part.rows)]
    return Spans(np.concatenate(ends) - size, size, number, part.width, windows)
