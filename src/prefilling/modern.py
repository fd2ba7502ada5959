"""The ``modern`` protocol: the same forward for every method, which then differ in the tokens they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from ..cli import UserError
from .attention.kernels import kernel_of
from .attention.spans import Attention, Spans, windows_of
from .cache import CacheWriter
from .forward import FusedForward, OwnForward
from .graphs import GraphForward, cuda_graph
from .layout import Layout, packed, right_padded
from .method import Method, Prefilled, PrefillOptions, Timer, TokenIds
from .packing import Bins

# On a CPU a batch is computed by parts of so many tokens at most, unless it is to be computed at once: what a layer
# hands to the next stays in the caches, and memory for it is taken from the system once, not in each layer.
CPU_TOKENS = 2048


@dataclass(frozen=True)
class Chunk:
    """What one forward computes: all of a batch, or the part of it that keeps a row within its token budget.

    Attributes:
        token_ids, positions: int64 [rows, width].
        last: int64 [prompts], flat place of each prompt's last token.
        places: int64 [rows * width], where keys and values go in the batch's cache; None where it is the rows.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    segments: Attention
    last: torch.Tensor
    places: torch.Tensor | None

    def to(self, device: torch.device) -> Chunk:
        """A copy on the device, from pinned memory where that is a GPU; transfers do not wait."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return Chunk(
            move(self.token_ids),
            move(self.positions),
            self.segments.to(device),
            move(self.last),
            None if self.places is None else move(self.places),
        )


class Modern:
    """One attention kernel for all, logits at last positions only, every prompt's KV in a padded cache.

    ``elementwise`` says what norms and rotary positions run on; None for a forward of transformers.

    Padded methods leave it right-padded, as their rows are, with one exception: generation counts a sliding window in
    columns of the cache, so that a window needs left padding. Methods that pack always unpack into left padding.

    Args:
        left_padded: leave every method's cache left-padded, which costs padded methods a scatter.
    """

    def __init__(
        self, model: PreTrainedModel, method: Method, options: PrefillOptions, left_padded: bool = False
    ) -> None:
        self._model, self._method, self._options = model, method, options
        self._forward = _forward(model, options.forward)
        self._kernel = kernel_of(method.attention or options.attention, model.device, model.dtype)
        self.elementwise = getattr(self._forward, "elementwise", None)
        self.attention = ("" if method.packs else "right-padded, ") + self._kernel.WORDS
        self._windows = windows_of(model.config)
        self._scatters = left_padded or method.packs or self._windows != (None,)

    def close(self) -> None:
        """Nothing is held that the model does not hold."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """One batch, as ``Engine.prefill`` says."""
        lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
        longest, forward = int(lengths.max()), self._forward
        writer = CacheWriter(lengths, forward.num_layers, forward.kv_heads, forward.head_dim, t.lap)
        layouts = self._layouts(prompts, lengths, bins)
        scatters = self._scatters or len(layouts) > 1  # parts of a padded batch are scattered into one cache, too
        spare = writer.spare if scatters else None
        planned = [
            (layout, _places(layout, numbers, longest, spare), self._spans(layout)) for layout, numbers in layouts
        ]
        order = torch.from_numpy(np.argsort(np.concatenate([numbers for _, numbers in layouts])))
        t.lap("plan")
        chunks = [_chunk(layout, places, self._kernel.plan(spans)) for layout, places, spans in planned]
        t.lap("mask")
        device = self._model.device
        chunks = [chunk.to(device) for chunk in chunks]
        column = np.arange(longest)
        kept = column >= longest - lengths[:, None] if scatters else column < lengths[:, None]
        mask = kept.astype(np.int64)
        mask_on_device = torch.from_numpy(mask).to(device, non_blocking=True)
        order = order.to(device, non_blocking=True)
        t.lap("transfer")
        chunks = [replace(chunk, segments=chunk.segments.made()) for chunk in chunks]
        t.lap("mask")
        hidden = []
        for chunk in chunks:
            writer.places = chunk.places
            hidden.append(forward(chunk.token_ids, chunk.positions, chunk.segments, chunk.last, writer.keep))
        last = torch.cat(hidden)
        logits, cache = self._model.get_output_embeddings()(last[order.to(last.device)]), writer.cache()
        t.lap("forward")
        first_tokens = None
        if self._options.metric == "ttft":
            first_tokens = logits.argmax(-1).tolist()
            t.lap("decode")
        computed = sum(forward.computed_tokens(layout.computed_tokens) for layout, _ in layouts)
        rows = sum(len(layout.token_ids) for layout, _ in layouts)
        pairs = sum(chunk.segments.pairs for chunk in chunks)
        return Prefilled(cache, mask_on_device, logits, first_tokens, computed, rows, attention_pairs=pairs)

    def _layouts(
        self, prompts: Sequence[TokenIds], lengths: np.ndarray, bins: Bins | None
    ) -> list[tuple[Layout, np.ndarray]]:
        """What is computed at once, each with the numbers of its prompts: all, or rows within the token budget."""
        longest, limit = int(lengths.max()), self._options.max_tokens
        if limit is not None and self._model.device.type == "cpu":
            limit = min(limit, CPU_TOKENS)
        if self._method.rows == "batch":
            parts = [[row] for row in _within(limit, lengths.tolist())]
        else:
            rows, width = [[number] for number in range(len(prompts))], longest
            if self._method.rows == "bin":
                rows = bins or self._options.pack(lengths.tolist(), longest)
                width = max(int(lengths[row].sum()) for row in rows)
            parts = [[rows[number] for number in part] for part in _within(limit, [width] * len(rows))]
        found = []
        for part in parts:
            numbers = np.array(sorted(number for row in part for number in row), dtype=np.int64)
            members = [prompts[number] for number in numbers]
            if self._method.packs:
                layout = packed(members, [np.searchsorted(numbers, row).tolist() for row in part])
            else:
                layout = right_padded(members, longest)
            found.append((layout, numbers))
        return found

    def _spans(self, layout: Layout) -> Spans:
        """What attends within itself: prompts where they share rows, else whole rows."""
        rows, width = layout.token_ids.shape
        starts, lengths = np.arange(rows) * width, np.full(rows, width)
        if self._method.packs:
            starts, lengths = layout.flat_start, layout.length
        order = np.argsort(starts)
        return Spans(starts[order], lengths[order], rows, width, self._windows)


def _forward(model: PreTrainedModel, name: str) -> FusedForward | GraphForward | OwnForward:
    """The forward of a name.

    Raises:
        UserError: it brings nothing, or cannot be, on this device or with these weights.
    """
    if name == "transformers":
        return OwnForward(model)
    if name != "fused" and model.device.type != "cuda":
        why = {"graphs": "graphs are CUDA's, and this is a CPU", "compiled": "compiled passes bring nothing on a CPU"}
        raise UserError("forward", why[name], "use forward=fused")
    if name == "graphs":
        if getattr(model, "is_quantized", False):
            raise UserError("forward", "graphs are of plain weights", "use forward=fused, or loadbit=none")
        return GraphForward(FusedForward.of(model), cuda_graph)
    return FusedForward.of(model, compiled=name == "compiled")


def _places(layout: Layout, numbers: np.ndarray, longest: int, spare: int | None) -> torch.Tensor | None:
    """Where a layout's keys and values go, pads to ``spare``; None where that is None, for the cache is the rows."""
    return None if spare is None else torch.from_numpy(layout.places(numbers, longest, spare))


def _chunk(layout: Layout, places: torch.Tensor | None, segments: Attention) -> Chunk:
    """A layout as tensors."""
    last = torch.from_numpy(layout.flat_start + layout.length - 1)
    return Chunk(torch.from_numpy(layout.token_ids), torch.from_numpy(layout.positions), segments, last, places)


def _within(limit: int | None, tokens: Sequence[int]) -> Bins:
    """Numbers of what is computed at once: in their order, at most ``limit`` tokens; what is longer goes alone."""
    parts: Bins = [[]]
    held = 0
    for number, length in enumerate(tokens):
        if limit is not None and parts[-1] and held + length > limit:
            parts.append([])
            held = 0
        parts[-1].append(number)
        held += length
    return parts
