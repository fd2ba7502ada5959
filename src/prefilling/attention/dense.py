"""Attention under one dense mask a row, as the paper's (section 3.1): every query-key pair of a row is computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from .spans import Attention, Spans

NAME = "dense"
WORDS = "dense mask, SDPA"


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve: never."""
    return None


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
    allowed = column[:, None] >= column[None, :]
    if sliding_window is not None:
        allowed &= column[:, None] < column[None, :] + sliding_window
    return ((segments[:, :, None] == segments[:, None, :]) & allowed)[:, None]


@dataclass(frozen=True)
class Dense(Attention):
    """Rows and their masks.

    Attributes:
        numbers: int64 [rows, width], the segment of each token, -1 on pads.
        masks: by sliding window, bool [rows, 1, width, width].
    """

    numbers: torch.Tensor
    windows: tuple[int | None, ...]
    pairs: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Dense:
        """A copy on the device; transfers do not wait."""
        masks = {window: mask.to(device, non_blocking=True) for window, mask in self.masks.items()}
        return replace(self, numbers=self.numbers.to(device, non_blocking=True), masks=masks)

    def made(self) -> Dense:
        """With its masks."""
        return replace(self, masks={window: independent_mask(self.numbers, window) for window in self.windows})

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        tokens, shape = self.numbers.numel(), tuple(self.numbers.shape)
        rows = qkv[:tokens].unflatten(0, shape).transpose(1, 2)  # [rows, heads + 2 * kv_heads, width, head_dim]
        q, k, v = rows.split([heads, kv_heads, kv_heads], dim=1)
        found = scaled_dot_product_attention(
            q, k, v, attn_mask=self.masks[window], scale=scale, enable_gqa=heads != kv_heads
        )
        out[:tokens].unflatten(0, shape).unflatten(2, (heads, -1)).copy_(found.transpose(1, 2))
        return out


def plan(spans: Spans) -> Dense:
    """Number the segments of each row."""
    numbers = torch.from_numpy(spans.numbers).view(spans.rows, spans.width)
    return Dense(numbers, spans.windows, spans.rows * spans.width**2)
