"""Attention within a model's own forward: transformers is given a kernel of ours in place of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from .spans import Attention

NAME = "segments"


@contextlib.contextmanager
def within(model: PreTrainedModel) -> Iterator[None]:
    """Have the model's own forward attend by a kernel that it is then given as ``segments=``.

    The configuration is set as ``set_attn_implementation`` sets it, without its walk through all modules, which would
    take 0.4 ms of a timed forward of 32 layers.
    """
    AttentionInterface.register(NAME, _attention)
    # Without it, masks of another call (padded generation) would be silently wrong under this name.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    scaling: float, segments: Attention, sliding_window: int | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What transformers calls in each layer: queries [rows, heads, width, head_dim], keys and values alike.

    The window is the layer's own, as some models have it in some layers only.
    """
    (rows, heads, width, head_dim), kv_heads = query.shape, key.shape[1]
    tokens = rows * width
    line = query.new_zeros(tokens + segments.spare_rows, heads + 2 * kv_heads, head_dim)
    line[:tokens] = torch.cat([query, key, value], dim=1).transpose(1, 2).flatten(0, 1)
    out = query.new_zeros(len(line), heads * head_dim)
    out = segments.attend(line, heads, kv_heads, scaling, out, sliding_window)
    return out[:tokens].view(rows, width, heads, head_dim), None
