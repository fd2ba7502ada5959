"""Attention by torch's FlexAttention, compiled for a mask of documents; blocks that no prompt sees are passed over."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..passes import compiled_whole
from .spans import Attention, Ints, Spans

NAME = "flex"
WORDS = "by segment, FlexAttention"
BLOCK = 128  # tokens of a block of queries or keys, torch's own choice
LONG = 2048  # from here on lines are padded to multiples of four blocks, so that there are fewer lengths to compile for


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve; None where it can."""
    if device.type == "cpu":
        found = any(shutil.which(name) for name in ("g++", "clang++"))
        return None if found else "FlexAttention is compiled, and there is no C++ compiler; install g++"
    from torch.utils._triton import has_triton

    return None if has_triton() else "FlexAttention is compiled, and there is no Triton; install it"


@dataclass(frozen=True)
class Blocks:
    """Which blocks of keys each block of queries sees, for one sliding window.

    Attributes:
        partial, full: int32 [blocks, blocks], a row's first ``*_number`` entries count: blocks of which some pairs are
            seen, and those of which all are.
        partial_number, full_number: int32 [blocks].
    """

    partial: torch.Tensor
    partial_number: torch.Tensor
    full: torch.Tensor
    full_number: torch.Tensor

    @classmethod
    def of(cls, offsets: Ints, window: int | None) -> Blocks:
        """From where segments begin and end, without looking at any pair.

        A block of queries sees the blocks from that in which its first query's segment (or window) begins up to its
        own. One of them is seen whole if it lies before its own, behind the begin of the segment of the last query,
        and within the window of that query.
        """
        tokens = int(offsets[-1])
        number = -(-tokens // BLOCK)
        first = np.arange(number) * BLOCK
        last = np.minimum(first + BLOCK, tokens) - 1
        begin = offsets[np.searchsorted(offsets, first, side="right") - 1]
        begin_of_last = offsets[np.searchsorted(offsets, last, side="right") - 1]
        if window is not None:
            begin = np.maximum(begin, first - window + 1)
            begin_of_last = np.maximum(begin_of_last, last - window + 1)
        blocks = np.arange(number)
        seen = (blocks >= begin[:, None] // BLOCK) & (blocks <= blocks[:, None])
        whole = seen & (blocks < blocks[:, None]) & (first >= begin_of_last[:, None])
        found = []
        for chosen in (seen & ~whole, whole):
            order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
            found += [torch.from_numpy(order), torch.from_numpy(chosen.sum(1).astype(np.int32))]
        return cls(*found)

    @property
    def pairs(self) -> int:
        """Query-key pairs of all blocks that are seen."""
        return int(self.partial_number.sum() + self.full_number.sum()) * BLOCK**2

    def to(self, device: torch.device) -> Blocks:
        """A copy on the device; transfers do not wait."""
        return Blocks(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Flex(Attention):
    """Blocks by sliding window, and the masks made of them.

    Attributes:
        numbers: int32 [tokens, padded], the segment of each token; pads are segments, too.
    """

    numbers: torch.Tensor
    blocks: dict[int | None, Blocks]
    pairs: int
    masks: dict[int | None, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> Flex:
        """A copy on the device; transfers do not wait."""
        blocks = {window: each.to(device) for window, each in self.blocks.items()}
        moved = replace(self, numbers=self.numbers.to(device, non_blocking=True), blocks=blocks, masks={})
        return moved.made() if self.masks else moved  # a mask looks at the numbers on its own device

    def made(self) -> Flex:
        """With torch's own block masks."""
        masks = {window: _block_mask(self.numbers, each, window) for window, each in self.blocks.items()}
        return replace(self, masks=masks)

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        line = functional.pad(qkv, (0, 0, 0, 0, 0, len(self.numbers) - len(qkv)))
        q, k, v = line.transpose(0, 1)[None].split([heads, kv_heads, kv_heads], dim=1)
        found = compiled(qkv.device.type)(
            q, k, v, block_mask=self.masks[window], scale=scale, enable_gqa=heads != kv_heads
        )  # [1, heads, tokens, head_dim]
        attended: torch.Tensor = found[0, :, : len(qkv)].transpose(0, 1).flatten(1)
        return attended


@functools.cache
def compiled(device: str) -> Any:
    """FlexAttention, compiled at its first call for lines of any length; on a CPU for each length anew.

    Code for any length does not compile on CPUs where a line has more than one block (torch 2.13).
    """
    from torch.nn.attention.flex_attention import flex_attention

    return compiled_whole(flex_attention, dynamic=device != "cpu")


def _block_mask(numbers: torch.Tensor, blocks: Blocks, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    def sees(_: torch.Tensor, __: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (numbers[query] == numbers[key]) & (query >= key)

    def sees_within(_: torch.Tensor, __: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        assert window is not None
        return (numbers[query] == numbers[key]) & (query >= key) & (query - key < window)

    return BlockMask.from_kv_blocks(
        blocks.partial_number[None, None], blocks.partial[None, None],
        blocks.full_number[None, None], blocks.full[None, None],
        BLOCK_SIZE=BLOCK, mask_mod=sees if window is None else sees_within,
        seq_lengths=(len(numbers), len(numbers)), compute_q_blocks=False,
    )  # fmt: skip


def plan(spans: Spans) -> Flex:
    """Find the blocks."""
    step = BLOCK if spans.tokens <= LONG else 4 * BLOCK
    offsets = np.unique([*spans.offsets, -(-spans.tokens // step) * step])
    numbers = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    blocks = {window: Blocks.of(offsets, window) for window in spans.windows}
    return Flex(torch.from_numpy(numbers), blocks, blocks[spans.widest].pairs)
