"""The ``paper`` protocol: what the authors' published code does, with the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from .attention.dense import independent_mask
from .attention.kernels import without_cudnn
from .cache import new_cache, unpack
from .layout import Layout, left_padded, packed
from .method import Method, Prefilled, PrefillOptions, Timer, TokenIds
from .packing import Bins
from .shape import windows_of


class Published:
    """Left padding, dense masks, logits at every position; prepacking leaves each prompt's last token out."""

    def __init__(self, model: PreTrainedModel, method: Method, options: PrefillOptions) -> None:
        self._model, self._method, self._options = model, method, options
        self._window = windows_of(model.config)[0]  # of all layers: models whose layers differ are refused
        self.attention = "dense mask" if method.packs else "left-padded, dense mask"

    def close(self) -> None:
        """Nothing is held."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """One batch, as ``Engine.prefill`` says."""
        return self._packed(prompts, t, bins) if self._method.packs else self._padded(prompts, t)

    def _padded(self, prompts: Sequence[TokenIds], t: Timer) -> Prefilled:
        layout = left_padded(prompts)
        t.lap("plan")
        rows = Rows(layout, self._model.device)
        t.lap("transfer")
        cache, mask = new_cache(), (rows.segments >= 0).long()  # the mask that a tokenizer returns with padding
        every = self._forward(rows, mask, cache)
        logits = every[rows.row, rows.start + rows.length - 1]
        t.lap("forward")
        first_tokens = None
        if self._options.metric == "ttft":
            first_tokens = logits.argmax(-1).tolist()
            t.lap("decode")
        rest = every if self._options.keeps_logits else None
        computed = layout.computed_tokens
        return Prefilled(cache, mask, logits, first_tokens, computed, len(layout.token_ids), rest, _pairs(layout))

    def _packed(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None) -> Prefilled:
        lengths = [len(ids) for ids in prompts]
        layout = packed([ids[:-1] for ids in prompts], bins or self._options.pack(lengths, max(lengths)))
        final = np.array([ids[-1] for ids in prompts], dtype=np.int64)
        t.lap("plan")
        rows = Rows(layout, self._model.device)
        final_on_device = torch.from_numpy(final).to(self._model.device, non_blocking=True)
        t.lap("transfer")
        cache, every = new_cache(), None
        mask: torch.Tensor | None
        if layout.computed_tokens:  # a batch of one-token prompts is empty without last tokens
            mask = independent_mask(rows.segments, self._window)
            t.lap("mask")
            every = self._forward(rows, mask, cache)
        if not self._options.keeps_logits:
            every = None
        t.lap("forward")
        computed, logits, first_tokens, mask = layout.computed_tokens, None, None, None
        if self._options.metric == "ttft":
            unpacked = unpack(cache, layout, self._model.device)
            mask = torch.cat([unpacked, unpacked.new_ones(len(prompts), 1)], dim=1)
            t.lap("unpack")
            with without_cudnn(self._model.device):
                logits = self._model(
                    input_ids=final_on_device[:, None],
                    attention_mask=mask,
                    position_ids=rows.length[:, None],
                    past_key_values=cache,
                    use_cache=True,
                ).logits[:, -1]
            first_tokens = logits.argmax(-1).tolist()
            computed += len(prompts)
            t.lap("decode")
        return Prefilled(cache, mask, logits, first_tokens, computed, len(layout.token_ids), every, _pairs(layout))

    def _forward(self, rows: Rows, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Logits at every position, [rows, width, vocab]."""
        with without_cudnn(self._model.device):
            logits: torch.Tensor = self._model(
                input_ids=rows.token_ids,
                attention_mask=mask,
                position_ids=rows.positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
        return logits


def _pairs(layout: Layout) -> int:
    """Query-key pairs of a dense mask."""
    return int(layout.token_ids.size * layout.token_ids.shape[1])


class Rows:
    """A layout on the device."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        def move(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        self.token_ids, self.positions, self.segments = map(move, (layout.token_ids, layout.positions, layout.segments))
        self.row, self.start, self.length = map(move, (layout.row, layout.start, layout.length))
