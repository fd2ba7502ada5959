"""The fused forward as CUDA graphs: for small batches, launching its kernels takes longer than what they compute.

A graph is captured once for a *bucket* of token counts, numbers of prompts and lengths, and replayed for every batch
that fits it, padded to it. Its pads are counted as computed tokens. Graphs are kept with the model, so that what one
method has captured serves the others; all of them share one pool of memory and one place for keys and values, whose
contents are taken out before the next replay.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from .attention.spans import Attention, ByOffsets
from .forward import FusedForward

MOST_TOKENS = 4096  # of a bucket: in larger batches computing takes longer than launching
STEPS = ((1024, 128), (MOST_TOKENS, 512))  # up to so many tokens, buckets are so many apart
WARM_UPS = 3  # calls before a capture, in which libraries choose and load their kernels
CaptureFunction = Callable[[Callable[[], None]], Callable[[], object]]


@dataclass
class CaptureCount:
    """How many graphs this process has captured, and the seconds that it took."""

    graphs: int = 0
    seconds: float = 0.0


capture_count = CaptureCount()


def bucket_of(tokens: int) -> int | None:
    """The token count that a batch is padded to; None: it is too large to gain by a graph."""
    step = next((step for most, step in STEPS if tokens <= most), None)
    return None if step is None else -(-tokens // step) * step


def power_of_two(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


@dataclass(frozen=True)
class Bucket:
    """What batches of one graph have in common.

    Attributes:
        tokens: of the line.
        segments: room for so many, one of pads among them.
        longest: tokens of a segment at most.
        prompts: room for so many last places.
    """

    tokens: int
    segments: int
    longest: int
    prompts: int


@dataclass
class CapturedGraph:
    """A graph with the memory that it reads and writes.

    Attributes:
        token_ids, positions: int64 [1, tokens].
        attention: with offsets, int32 [segments + 1].
        last: int64 [prompts].
        kv: of each layer keys and values side by side, [tokens, 2 * kv_heads * head_dim].
        hidden: [prompts, hidden].
        replay: computes ``kv`` and ``hidden`` anew.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: ByOffsets
    last: torch.Tensor
    kv: list[torch.Tensor]
    hidden: torch.Tensor
    replay: Callable[[], object]

    def fill(self, token_ids: torch.Tensor, positions: torch.Tensor, attention: ByOffsets, last: torch.Tensor) -> None:
        """Copy a batch in and fill up the rest: pads in a segment of their own, empty segments, last places 0."""
        tokens, whole = token_ids.numel(), self.token_ids.numel()
        for own, given in ((self.token_ids, token_ids), (self.positions, positions)):
            own[0, :tokens].copy_(given.view(-1), non_blocking=True)
            own[0, tokens:].zero_()
        offsets, given = self.attention.offsets, attention.offsets
        offsets[: len(given)].copy_(given, non_blocking=True)
        offsets[len(given) :].fill_(whole)
        self.last[: len(last)].copy_(last, non_blocking=True)
        self.last[len(last) :].zero_()


class GraphForward:
    """A forward as ``FusedForward``, by graphs wherever a batch fits one and attention takes offsets.

    Args:
        capture: makes a replay of what is called, after it has been called: on CUDA a graph.
    """

    @classmethod
    def of(cls, model: PreTrainedModel) -> GraphForward:
        """The graphs of ``model`` on its CUDA device, kept with its fused forward, and so made anew with it."""
        fused = FusedForward.of(model)
        if fused.graph_forward is None:
            fused.graph_forward = cls(fused, functools.partial(cuda_graph, pool=torch.cuda.graph_pool_handle()))
        return fused.graph_forward

    def __init__(self, fused: FusedForward, capture: CaptureFunction) -> None:
        self._fused, self._capture = fused, capture
        self._captured: dict[tuple[Bucket, type[ByOffsets]], CapturedGraph] = {}
        self._kv: list[torch.Tensor] = []  # of each layer, for the tokens of the largest bucket
        self.elementwise = fused.elementwise
        self.kv_heads, self.head_dim, self.num_layers = fused.kv_heads, fused.head_dim, fused.num_layers

    def computed_tokens(self, tokens: int) -> int:
        """Token positions that pass through the model for a line of so many, those that fill up a bucket among them."""
        return bucket_of(tokens) or tokens

    @property
    def graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._captured)

    @torch.inference_mode()
    def __call__(
        self, token_ids: torch.Tensor, positions: torch.Tensor, segments: Attention, last: torch.Tensor, keep: Any
    ) -> torch.Tensor:
        """As ``FusedForward``; keys and values are kept once all layers are through."""
        tokens = token_ids.numel()
        whole = bucket_of(tokens)
        if whole is None:
            return self._fused(token_ids, positions, segments, last, keep)
        assert isinstance(segments, ByOffsets)
        longest = power_of_two(max(segments.longest, whole - tokens))
        bucket = Bucket(whole, power_of_two(len(segments.offsets)), longest, power_of_two(len(last)))
        kind = bucket, type(segments)
        if kind not in self._captured:
            self._captured[kind] = self._make(bucket, segments)
        captured = self._captured[kind]
        captured.fill(token_ids, positions, segments, last)
        captured.replay()
        for layer, kv in enumerate(captured.kv):
            keep(layer, kv[:tokens])
        return captured.hidden[: len(last)].clone()

    def _make(self, bucket: Bucket, like: ByOffsets) -> CapturedGraph:
        """Capture the forward of a bucket, on pads."""
        device = like.offsets.device
        offsets = torch.arange(bucket.segments + 1, dtype=torch.int32, device=device) * bucket.longest
        offsets.clamp_(max=bucket.tokens)
        ids, positions = torch.zeros((2, 1, bucket.tokens), dtype=torch.int64, device=device).unbind()
        last = torch.zeros(bucket.prompts, dtype=torch.int64, device=device)
        attention = replace(like, offsets=offsets, longest=bucket.longest)
        # ``hidden`` and ``replay`` are placeholders until the capture below sets them.
        made = CapturedGraph(ids, positions, attention, last, [], hidden=ids, replay=int)

        def keep(layer: int, kv: torch.Tensor) -> None:
            if layer == len(self._kv):
                self._kv.append(kv.new_empty((MOST_TOKENS, kv.shape[1])))
            if layer == len(made.kv):
                made.kv.append(self._kv[layer][: bucket.tokens])
            made.kv[layer].copy_(kv)

        def run() -> None:
            made.hidden = self._fused(ids, positions, made.attention, last, keep)

        start = time.perf_counter()
        made.replay = self._capture(run)
        capture_count.graphs += 1
        capture_count.seconds += time.perf_counter() - start
        return made


def cuda_graph(run: Callable[[], None], pool: Any) -> Callable[[], object]:
    """Capture what ``run`` launches on this thread's CUDA device, for replays.

    Args:
        pool: of memory that graphs share, as ``torch.cuda.graph_pool_handle`` gives it.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, a serving engine's for example, may go on allocating meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        run()
    return graph.replay
