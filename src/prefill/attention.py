"""The independent causal mask: within a packed row each prompt sees itself alone."""

from __future__ import annotations

import torch


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
