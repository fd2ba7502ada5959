"""Greedy generation by the model's own ``generate``, whatever the model's settings ask for."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


def greedy(model: PreTrainedModel, token_ids: torch.Tensor, mask: torch.Tensor, tokens: int, **options: Any) -> Any:
    """Exactly so many new tokens for token_ids int64 [k, n], without sampling, penalties or stop tokens of the model.

    Args:
        mask: int64 [k, columns], of the cache that ``past_key_values`` gives and of ``token_ids``.
        options: all else that ``model.generate`` takes.

    Returns:
        What ``model.generate`` returns with ``return_dict_in_generate``: ``sequences`` int64 [k, n + tokens], and more.
    """
    generate: Any = model.generate
    settings, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return generate(
            token_ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            **options,
        )
    finally:
        model.generation_config = settings
