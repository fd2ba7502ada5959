"""Attention by a FlashAttention package, through the function that transformers' own attention calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import utils

from .spans import ByOffsets, half_precision_on_cuda

NAME = "flash"
WORDS = "by segment, FlashAttention package"


def interface() -> str | None:
    """The newest FlashAttention that there is a package for, as transformers names it; None: there is none."""
    if getattr(utils, "is_flash_attn_3_available", bool)():
        return "flash_attention_3"
    return "flash_attention_2" if utils.is_flash_attn_2_available() else None


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve; None where it can."""
    if reason := half_precision_on_cuda("FlashAttention's package", device, dtype):
        return reason
    without = "no FlashAttention package is installed; pip install flash-attn, or use attention=varlen"
    return None if interface() else without


@dataclass(frozen=True)
class Flash(ByOffsets):
    """Offsets, as the package takes them."""

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        from transformers.modeling_flash_attention_utils import _flash_attention_forward

        call: Any = _flash_attention_forward
        q, k, v = (part[None] for part in qkv.split([heads, kv_heads, kv_heads], dim=1))
        found: torch.Tensor = call(
            q, k, v, None, query_length=q.shape[1], is_causal=True, softmax_scale=scale, sliding_window=window,
            cu_seq_lens_q=self.offsets, cu_seq_lens_k=self.offsets, max_length_q=self.longest,
            max_length_k=self.longest, attn_implementation=interface(),
        )  # fmt: skip
        return found.view(len(qkv), -1)


plan = Flash.of
