"""Attention by torch's variable-length kernel: one call serves all segments, which it is given as offsets."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .spans import Attention, Spans, causal

NAME = "varlen"
WORDS = "by segment, variable-length kernel"


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve; None where it can."""
    if device.type != "cuda":
        return "torch's variable-length kernel runs on CUDA alone; use attention=segments"
    if dtype not in {torch.float16, torch.bfloat16}:
        return f"torch's variable-length kernel has no {str(dtype).removeprefix('torch.')}; use dtype=bfloat16"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "this torch has no variable-length kernel; use torch 2.11 or newer"
    return None


@dataclass(frozen=True)
class Varlen(Attention):
    """Offsets.

    Attributes:
        offsets: int32 [segments + 1], the cumulated lengths over the whole line, pads as segments of their own.
        longest: tokens of the longest segment.
    """

    offsets: torch.Tensor
    longest: int
    pairs: int
    kernel: str = NAME

    def to(self, device: torch.device) -> Varlen:
        """A copy on the device; transfers do not wait."""
        return replace(self, offsets=self.offsets.to(device, non_blocking=True))

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """One kernel over all segments; its inputs' last dimension has to be contiguous."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        grouped: dict[str, Any] = {}
        if heads != kv_heads:
            if "enable_gqa" in inspect.signature(varlen_attn).parameters:
                grouped["enable_gqa"] = True
            else:  # torch 2.11 and 2.12: keys and values once for each query head
                k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        found = varlen_attn(
            q, k, v, self.offsets, self.offsets, self.longest, self.longest, scale=scale,
            window_size=((window or 0) - 1, 0), **grouped,
        )  # fmt: skip
        assert isinstance(found, torch.Tensor)
        return found.flatten(1)


def plan(spans: Spans) -> Varlen:
    """Take the offsets."""
    offsets = spans.offsets
    lengths = np.diff(offsets)
    return Varlen(torch.from_numpy(offsets.astype(np.int32)), int(lengths.max()), causal(lengths))
