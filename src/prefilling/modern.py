"""The ``modern`` protocol: the same forward for every method, which then differ in the tokens they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from ..cli import UserError
from .attention.kernels import kernel_of
from .attention.spans import Attention, spans_of
from .cache import CacheWriter
from .forward import FusedForward, OwnForward, logits_of
from .graphs import GraphForward
from .layout import Layout, Part, most_at_once, packed, parts_of, right_padded, scatters
from .method import Method, Prefilled, PrefillOptions, Timer, TokenIds
from .packing import Bins
from .shape import windows_of

OF_OFFSETS = ("varlen", "flash")  # kernels whose segments are offsets on the device, which a graph reads anew
QUANTIZED = ("Linear4bit", "Linear8bitLt")  # bitsandbytes' layers, which wait for the device


@dataclass(frozen=True)
class Chunk:
    """A part of a batch as tensors.

    Attributes:
        token_ids, positions: int64 [rows, width].
        last: int64 [prompts], flat place of each prompt's last token.
        places: int64 [rows * width], where keys and values go in the batch's cache; None: the rows themselves are the
            cache, and nothing is scattered.
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
        if isinstance(self._forward, GraphForward) and self._kernel.NAME not in OF_OFFSETS:
            problem = f"graphs need attention by offsets, and this is attention={self._kernel.NAME}"
            raise UserError("forward", problem, f"use attention={' or '.join(OF_OFFSETS)}, or forward=fused")
        self.elementwise = getattr(self._forward, "elementwise", None)
        self.attention = ("" if method.packs else "right-padded, ") + self._kernel.WORDS
        self._windows, self._left_padded = windows_of(model.config), left_padded

    def close(self) -> None:
        """Nothing is held that the model does not hold."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """One batch, as ``Engine.prefill`` says."""
        sizes = [len(ids) for ids in prompts]
        lengths, longest, forward = np.array(sizes, dtype=np.int64), max(sizes), self._forward
        writer = CacheWriter(lengths, forward.num_layers, forward.kv_heads, forward.head_dim, t.lap)
        packs, most = self._method.packs, most_at_once(self._options.max_tokens, self._model.device.type)
        parts = parts_of(self._method, sizes, self._options.pack, most, bins)
        numbers = [part.prompts for part in parts]  # of each part's prompts, within the batch
        layouts = [_layout(part, prompts, own, packs) for part, own in zip(parts, numbers, strict=True)]
        left_padded = self._left_padded or scatters(self._method, parts, self._windows != (None,))
        spare = writer.spare if left_padded else None
        places = [_places(layout, own, longest, spare) for layout, own in zip(layouts, numbers, strict=True)]
        spans = [spans_of(part, sizes, packs, self._windows) for part in parts]
        order = torch.from_numpy(np.argsort(np.concatenate(numbers)))  # from the order of parts back to the batch's
        t.lap("plan")
        segments = [self._kernel.plan(each) for each in spans]
        chunks = [_chunk(*each) for each in zip(layouts, places, segments, strict=True)]
        t.lap("mask")
        device = self._model.device
        chunks = [chunk.to(device) for chunk in chunks]
        column = np.arange(longest)
        kept = column >= longest - lengths[:, None] if left_padded else column < lengths[:, None]
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
        logits = logits_of(self._model.get_output_embeddings(), last[order.to(last.device)])
        cache = writer.cache()
        t.lap("forward")
        first_tokens = None
        if self._options.metric == "ttft":
            first_tokens = logits.argmax(-1).tolist()
            t.lap("decode")
        computed = sum(forward.computed_tokens(part.computed_tokens) for part in parts)
        rows = sum(len(part.rows) for part in parts)
        pairs = sum(chunk.segments.pairs for chunk in chunks)
        return Prefilled(cache, mask_on_device, logits, first_tokens, computed, rows, attention_pairs=pairs)


def _layout(part: Part, prompts: Sequence[TokenIds], numbers: np.ndarray, packs: bool) -> Layout:
    """Lay the prompts of these numbers out, as the part says."""
    members = [prompts[number] for number in numbers]
    if not packs:
        return right_padded(members, part.width)
    return packed(members, [np.searchsorted(numbers, row).tolist() for row in part.rows])


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
        if any(type(module).__name__ in QUANTIZED for module in model.modules()):
            raise UserError("forward", "graphs are of plain weights", "use forward=fused, or loadbit=none")
        return GraphForward.of(model)
    return FusedForward.of(model, compiled=name == "compiled")


def _places(layout: Layout, numbers: np.ndarray, longest: int, spare: int | None) -> torch.Tensor | None:
    """Where a layout's keys and values go, pads to ``spare``; None where nothing is scattered, and there is none."""
    return None if spare is None else torch.from_numpy(layout.places(numbers, longest, spare))


def _chunk(layout: Layout, places: torch.Tensor | None, segments: Attention) -> Chunk:
    """A layout as tensors."""
    last = torch.from_numpy(layout.flat_start + layout.length - 1)
    return Chunk(torch.from_numpy(layout.token_ids), torch.from_numpy(layout.positions), segments, last, places)
