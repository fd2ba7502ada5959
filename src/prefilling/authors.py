"""The ``paper`` protocol with ``numerics=authors``: steps and number types of the authors' code, not its results alone.

What is done is the same as in ``published.py``; how it is done is theirs: eager attention, float32 logits, a float32
mask made prompt by prompt on the device, KV cut out and padded prompt by prompt, and first tokens from ``generate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .cache import new_cache
from .greedy import greedy
from .layout import Layout, left_padded, packed
from .method import Method, Prefilled, PrefillOptions, Timer, TokenIds
from .packing import Bins
from .published import Published, Rows


class Authors(Published):
    """Prefills as the authors' code does, step by step. The model must have been loaded with eager attention."""

    def __init__(self, model: PreTrainedModel, method: Method, options: PrefillOptions) -> None:
        super().__init__(model, method, options)
        self.attention = "eager, float32 mask per bin" if method.packs else "left-padded, eager"

    def _padded(self, prompts: Sequence[TokenIds], t: Timer) -> Prefilled:
        layout = left_padded(prompts)
        t.lap("plan")
        rows = Rows(layout, self._model.device)
        t.lap("transfer")
        cache, mask = new_cache(), (rows.segments >= 0).long()
        if self._options.metric == "prefill":
            every = self._forward(rows, mask, cache)
            logits = every[rows.row, rows.start + rows.length - 1]
            rest = every if self._options.keeps_logits else None
            t.lap("forward")
            return Prefilled(cache, mask, logits, None, layout.computed_tokens, len(layout.token_ids), rest)
        # Older versions of generate, which theirs is, computed the logits of all positions; newer ones are asked to.
        done = greedy(self._model, rows.token_ids, mask, 1, logits_to_keep=0, past_key_values=cache, output_logits=True)
        t.lap("forward")
        first_tokens = done.sequences[:, -1].tolist()
        t.lap("decode")
        logits = done.logits[0].float()
        return Prefilled(cache, mask, logits, first_tokens, layout.computed_tokens, len(layout.token_ids))

    def _packed(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None) -> Prefilled:
        lengths = [len(ids) for ids in prompts]
        bins = bins or self._options.pack(lengths, max(lengths))
        layout = packed([ids[:-1] for ids in prompts], bins)
        t.lap("plan")
        rows = Rows(layout, self._model.device)
        mask = self._mask(layout, bins)
        t.lap("transfer")
        cache, every = new_cache(), None
        if layout.computed_tokens:
            every = self._forward(rows, mask, cache)
        t.lap("forward")
        count = len(layout.token_ids)
        if self._options.metric == "prefill":
            rest = every if self._options.keeps_logits else None
            return Prefilled(cache, None, None, None, layout.computed_tokens, count, rest)
        del every
        of_prompts = _cut_out(cache, layout)
        final, seen = self._final(prompts, layout)
        t.lap("unpack")
        done = greedy(self._model, final, seen, 1, past_key_values=of_prompts, output_logits=True)
        first_tokens = done.sequences[:, -1].tolist()
        t.lap("decode")
        computed = layout.computed_tokens + len(prompts)
        return Prefilled(of_prompts, seen, done.logits[0].float(), first_tokens, computed, count)

    def _forward(self, rows: Rows, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        return super()._forward(rows, mask, cache).float()

    def _mask(self, layout: Layout, bins: Bins) -> torch.Tensor:
        """Additive mask [bins, 1, width, width] in the model's type: each bin's from its prompts' triangles."""
        device, width, window = self._model.device, layout.token_ids.shape[1], self._window
        of_bins = []
        for members in bins:
            tokens = int(layout.length[members].sum())
            seen = torch.zeros(tokens, tokens, device=device)
            for prompt in members:
                start, n = int(layout.start[prompt]), int(layout.length[prompt])
                block = torch.ones(n, n).tril()
                seen[start : start + n, start : start + n] = block if window is None else block.triu(1 - window)
            of_bins.append(functional.pad(seen, (0, width - tokens, 0, width - tokens)))
        every = torch.stack(of_bins)[:, None]
        lowest = torch.finfo(self._model.dtype).min / 2  # of the least number, a score below 0 would make infinity
        return torch.zeros_like(every).masked_fill(every == 0, lowest).to(self._model.dtype)

    def _final(self, prompts: Sequence[TokenIds], layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Each prompt's last token [k, 1], and the mask of its KV and that token [k, longest], set prompt by prompt."""
        device = self._model.device
        final = torch.empty(len(prompts), dtype=torch.long, device=device)
        seen = torch.zeros(len(prompts), int(layout.length.max()) + 1, dtype=torch.long, device=device)
        for number, ids in enumerate(prompts):
            final[number] = int(ids[-1])
            seen[number, -len(ids) :] = 1
        return final[:, None], seen


def _cut_out(cache: DynamicCache, layout: Layout) -> DynamicCache:
    """One left-padded row a prompt from packed keys and values, layer by layer and prompt by prompt."""
    found = new_cache()
    layer: Any
    for number, layer in enumerate(cache.layers):
        found.update(_left_padded(layer.keys, layout), _left_padded(layer.values, layout), number)
    return found


def _left_padded(packed: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Keys or values of a layer, [bins, kv_heads, width, head_dim], as [k, kv_heads, longest, head_dim]."""
    places = zip(layout.row.tolist(), layout.start.tolist(), layout.length.tolist(), strict=True)
    pieces = [packed[row, :, start : start + length].transpose(0, 1) for row, start, length in places]
    # Padding is put on the right, so it is put on what is turned around.
    return pad_sequence([piece.flip(0) for piece in pieces], batch_first=True).flip(1).permute(0, 2, 1, 3)
