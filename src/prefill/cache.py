"""The packed KV into one cache per prompt: a batch cache, left-padded, that generation goes on from."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache


def new_cache() -> DynamicCache:
    """An empty cache that keeps every position.

    Built without the model's config on purpose: with it, a sliding-window model would trim a packed row to its window.
    """
    return DynamicCache()


@torch.inference_mode()
def unpack(cache: DynamicCache, row: torch.Tensor, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Scatter a packed cache, in place, into one left-padded row per prompt (the paper, section 3.1).

    Layer by layer, each packed tensor being freed before the next layer is scattered, so that at most one layer is
    held twice.

    Args:
        cache: per layer keys and values [rows, kv_heads, width, head_dim]; becomes [k, kv_heads, longest, head_dim].
        row, start, length: int64 [k], where each prompt lies in the packed rows; length may be 0.

    Returns:
        The attention mask of the cache, int64 [k, longest]: 0 on pads, 1 on a prompt's tokens.
    """
    k, longest, device = len(length), int(length.max()), length.device
    column = torch.arange(longest, device=device)
    mask = column >= (longest - length)[:, None]
    prompt, to_column = mask.nonzero(as_tuple=True)
    from_row = row[prompt]
    from_column = start[prompt] + to_column - (longest - length[prompt])
    for layer in cache.layers:
        for name in ("keys", "values"):
            source = getattr(layer, name)
            target = source.new_zeros(k, source.shape[1], longest, source.shape[3])
            target[prompt, :, to_column] = source[from_row, :, from_column]
            setattr(layer, name, target)
    return mask.long()
