"""The methods: how each orders the prompts of a dataset and carries one batch from token ids to its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from src.prefill.attention import independent_mask
from src.prefill.cache import new_cache, unpack
from src.prefill.layout import Layout, left_padded, packed
from src.prefill.packing import Bins
from src.workload.batches import Batch, length_ordered_batches

PHASES = ("tokenize", "plan", "transfer", "forward", "unpack", "decode")
TokenIds = NDArray[np.int64]
Pack = Callable[[Sequence[int], int], Bins]


class Laps(Protocol):
    """What a timer offers: ``lap`` ends the phase that began at the lap before it."""

    def lap(self, phase: str) -> None: ...


@dataclass(frozen=True)
class Method:
    """A batching strategy.

    Attributes:
        packs: prompts share rows (prepacking); else each has its own row, left-padded.
        orders_by_length: an offline oracle, which needs the whole dataset before its first batch.
    """

    name: str
    packs: bool = False
    orders_by_length: bool = False

    def batches(self, shuffled: list[Batch], lengths: NDArray[np.int64], batch_size: int) -> list[Batch]:
        """This method's batches over the dataset: the shuffled ones, unless it reorders."""
        return length_ordered_batches(lengths, batch_size) if self.orders_by_length else shuffled


METHODS = {
    method.name: method
    for method in (
        Method("full-batching"),
        Method("length-ordered", orders_by_length=True),
        Method("prepacking", packs=True),
    )
}


@dataclass(frozen=True)
class Prefilled:
    """What a prefill leaves behind.

    Attributes:
        cache: per layer keys and values [k, kv_heads, longest, head_dim], each prompt's last column at the right;
            packed as the forward left it where the metric does not ask for unpacking (``paper`` prefill).
        logits: [k, vocab] at each prompt's last token; None where the last token is left out (``paper`` prefill of
            prepacking).
        first_tokens: the first new token of each prompt, on the host; None for the prefill metric.
        computed_tokens: token positions that passed through the model, pads included.
        rows: rows of the forward: prompts for padded methods, bins for prepacking.
    """

    cache: DynamicCache
    logits: torch.Tensor | None
    first_tokens: list[int] | None
    computed_tokens: int
    rows: int


@torch.inference_mode()
def prefill_batch(
    model: PreTrainedModel, prompts: Sequence[TokenIds], method: Method, protocol: str, metric: str, pack: Pack, t: Laps
) -> Prefilled:
    """Prefill one batch, ending every phase with ``t.lap``.

    ``paper`` does what the authors' code does: logits at every position; prepacking leaves out each prompt's last
    token, does not unpack for the prefill metric, and for TTFT gets the first token from one further decode step.
    ``modern`` does identical work for all: logits at each prompt's last position, the first token read from them, KV
    unpacked where it was packed.

    Args:
        prompts: int64 [length] each, at least one token each.
        metric: ``prefill`` or ``ttft``.
        pack: lengths and capacity to bins.
    """
    if method.packs and protocol == "paper":
        return _prepack_as_published(model, prompts, metric, pack, t)
    if method.packs:
        lengths = [len(ids) for ids in prompts]
        layout = packed(prompts, pack(lengths, max(lengths)))
    else:
        layout = left_padded(prompts)
    t.lap("plan")
    on_device = _to_device(layout, model.device)
    t.lap("transfer")
    cache = new_cache()
    last = on_device.start + on_device.length - 1
    if protocol == "paper":
        logits = _forward(model, on_device, method.packs, cache, all_logits=True)[on_device.row, last]
    else:
        hidden = _forward(model, on_device, method.packs, cache, all_logits=False)
        logits = model.get_output_embeddings()(hidden[on_device.row, last])
    t.lap("forward")
    if method.packs:
        unpack(cache, on_device.row, on_device.start, on_device.length)
        t.lap("unpack")
    first_tokens = None
    if metric == "ttft":
        first_tokens = logits.argmax(-1).tolist()
        t.lap("decode")
    return Prefilled(cache, logits, first_tokens, layout.computed_tokens, len(layout.token_ids))


def _prepack_as_published(
    model: PreTrainedModel, prompts: Sequence[TokenIds], metric: str, pack: Pack, t: Laps
) -> Prefilled:
    lengths = [len(ids) for ids in prompts]
    layout = packed([ids[:-1] for ids in prompts], pack(lengths, max(lengths)))
    final = np.array([ids[-1] for ids in prompts], dtype=np.int64)
    t.lap("plan")
    on_device = _to_device(layout, model.device)
    final_on_device = torch.from_numpy(final).to(model.device, non_blocking=True)
    t.lap("transfer")
    cache = new_cache()
    if layout.computed_tokens:  # nothing is left of a batch of one-token prompts
        _forward(model, on_device, True, cache, all_logits=True)
    t.lap("forward")
    computed, logits, first_tokens = layout.computed_tokens, None, None
    if metric == "ttft":
        mask = unpack(cache, on_device.row, on_device.start, on_device.length)
        t.lap("unpack")
        logits = model(
            input_ids=final_on_device[:, None],
            attention_mask=torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1),
            position_ids=on_device.length[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        first_tokens = logits.argmax(-1).tolist()
        computed += len(prompts)
        t.lap("decode")
    return Prefilled(cache, logits, first_tokens, computed, len(layout.token_ids))


@dataclass(frozen=True)
class _DeviceLayout:
    token_ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    row: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor


def _to_device(layout: Layout, device: torch.device) -> _DeviceLayout:
    arrays = (layout.token_ids, layout.positions, layout.segments, layout.row, layout.start, layout.length)
    return _DeviceLayout(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


def _forward(
    model: PreTrainedModel, layout: _DeviceLayout, packs: bool, cache: DynamicCache, all_logits: bool
) -> torch.Tensor:
    """Logits [rows, width, vocab] or, without ``all_logits``, the last hidden states [rows, width, hidden]."""
    if packs:
        mask = independent_mask(layout.segments, getattr(model.config, "sliding_window", None))
    else:
        mask = (layout.segments >= 0).long()  # what a tokenizer's padding gives; the model makes its causal mask
    inputs = {
        "input_ids": layout.token_ids,
        "attention_mask": mask,
        "position_ids": layout.positions,
        "past_key_values": cache,
        "use_cache": True,
    }
    return model(**inputs).logits if all_logits else model.get_decoder()(**inputs).last_hidden_state
