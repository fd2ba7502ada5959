"""Attention by torch's variable-length kernel: one call serves all segments, which it is given as offsets."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from .spans import ByOffsets, half_precision_on_cuda

NAME = "varlen"
WORDS = "by segment, variable-length kernel"


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve; None where it can."""
    if reason := half_precision_on_cuda("torch's variable-length kernel", device, dtype):
        return reason
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "this torch has no variable-length kernel; use torch 2.11 or newer"
    return None


@dataclass(frozen=True)
class Varlen(ByOffsets):
    """Offsets, as torch's kernel takes them."""

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """One kernel over all segments; its inputs' last dimension has to be contiguous."""
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        grouped: dict[str, Any] = {}
        if heads != kv_heads:
            if _takes_groups():
                grouped["enable_gqa"] = True
            else:  # torch 2.11 and 2.12: keys and values once for each query head
                k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        found = _kernel()(
            q, k, v, self.offsets, self.offsets, self.longest, self.longest, scale=scale,
            window_size=((window or 0) - 1, 0), **grouped,
        )  # fmt: skip
        assert isinstance(found, torch.Tensor)
        return found.flatten(1)


def _kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@functools.cache
def _takes_groups() -> bool:
    """Whether several query heads may share a head of keys and values; asked once, for asking takes 15 µs a layer."""
    return "enable_gqa" in inspect.signature(_kernel()).parameters


plan = Varlen.of
