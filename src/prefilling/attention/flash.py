"""Attention by a FlashAttention package, through the function that transformers' own attention calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import utils

from .spans import Attention, Spans, causal

NAME = "flash"
WORDS = "by segment, FlashAttention package"


def interface() -> str | None:
    """The newest FlashAttention that there is a package for, as transformers names it; None: there is none."""
    if getattr(utils, "is_flash_attn_3_available", bool)():
        return "flash_attention_3"
    return "flash_attention_2" if utils.is_flash_attn_2_available() else None


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve; None where it can."""
    if device.type != "cuda":
        return "FlashAttention's package runs on CUDA alone; use attention=segments"
    if dtype not in {torch.float16, torch.bfloat16}:
        return f"FlashAttention's package has no {str(dtype).removeprefix('torch.')}; use dtype=bfloat16"
    without = "no FlashAttention package is installed; pip install flash-attn, or use attention=varlen"
    return None if interface() else without


@dataclass(frozen=True)
class Flash(Attention):
    """Offsets, as the package takes them.

    Attributes:
        offsets: int32 [segments + 1], the cumulated lengths over the whole line, pads as segments of their own.
        longest: tokens of the longest segment.
        version: the interface, by the name that transformers gives it.
    """

    offsets: torch.Tensor
    longest: int
    pairs: int
    version: str
    kernel: str = NAME

    def to(self, device: torch.device) -> Flash:
        """A copy on the device; transfers do not wait."""
        return replace(self, offsets=self.offsets.to(device, non_blocking=True))

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        from transformers.modeling_flash_attention_utils import _flash_attention_forward

        call: Any = _flash_attention_forward
        q, k, v = (part[None] for part in qkv.split([heads, kv_heads, kv_heads], dim=1))
        found: torch.Tensor = call(
            q, k, v, None, query_length=q.shape[1], is_causal=True, softmax_scale=scale, sliding_window=window,
            cu_seq_lens_q=self.offsets, cu_seq_lens_k=self.offsets, max_length_q=self.longest,
            max_length_k=self.longest, attn_implementation=self.version,
        )  # fmt: skip
        return found.view(len(qkv), -1)


def plan(spans: Spans) -> Flash:
    """Take the offsets."""
    offsets = spans.offsets
    lengths, version = np.diff(offsets), interface() or "flash_attention_2"
    return Flash(torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()), causal(lengths), version)
