"""How long and how much memory a run will take, before it starts: rough, from operations and a measured rate."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SMALLEST_PRODUCT = 128
LARGEST_PRODUCT = {"cpu": 4096, "cuda": 16384}
USUAL_PRODUCT_SECONDS = 0.02
PRODUCTS = 5  # of each size
PRODUCT_SECONDS = 0.8


@dataclass(frozen=True)
class Shape:
    """What the cost of a forward depends on.

    Attributes:
        layer_parameters: weights of all layers; vocabulary: hidden size times vocabulary; attention: layers times
            the heads' total width; kv_width: keys and values of one token, elements over all layers.
        layers: their number; kv_parameters: weights of one layer's key and value projections; tied: the head is the
        embedding; window: keys that a query sees at most (infinite where it sees all before it).
    """

    layer_parameters: int
    vocabulary: int
    vocab_size: int
    attention: int
    kv_width: int
    layers: int
    kv_parameters: int
    tied: bool
    window: float

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Read the shape of a Llama-like model."""
        hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        kv = 2 * hidden * head_dim * kv_heads
        per_layer = 2 * hidden * head_dim * heads + kv + 3 * hidden * config.intermediate_size
        return cls(
            layer_parameters=layers * per_layer,
            vocabulary=hidden * config.vocab_size,
            vocab_size=config.vocab_size,
            attention=layers * heads * head_dim,
            kv_width=2 * layers * kv_heads * head_dim,
            layers=layers,
            kv_parameters=kv,
            tied=bool(config.tie_word_embeddings),
            window=getattr(config, "sliding_window", None) or math.inf,
        )

    def operations(self, rows: int, width: int, logit_positions: int) -> float:
        """Floating-point operations of a dense forward over [rows, width]."""
        tokens = rows * width
        return (
            2.0 * tokens * self.layer_parameters
            + 4.0 * tokens * width * self.attention
            + (2.0 * logit_positions * self.vocabulary)
        )

    def bytes(self, rows: int, width: int, logit_positions: int, element_size: int) -> float:
        """Lower bound of the memory that weights, KV and logits of a forward hold at once."""
        weights = self.layer_parameters + self.vocabulary
        return element_size * (weights + rows * width * self.kv_width + float(logit_positions) * self.vocab_size)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of square matrix products: the best of several products of several sizes.

    Products as a model's layers have them, by a transposed weight: a processor without units for bfloat16 takes five to
    ten times as long for others.

    Sizes double, each warm before it is timed, while the next ones still fit into about a second: so a type that the
    processor only emulates (bfloat16 on many CPUs, at a hundredth of the rate) takes no longer, and a fast device gets
    products large enough to reach its rate. Memory: three matrices of at most ``LARGEST_PRODUCT`` squared.
    """
    size, best, deadline_s = SMALLEST_PRODUCT, 0.0, math.inf
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        taken_s = [_seconds_of_product(a, b) for _ in range(1 + PRODUCTS)][1:]
        if deadline_s == math.inf:  # the first product of all loads libraries
            deadline_s = time.perf_counter() + PRODUCT_SECONDS
        best = max(best, 2.0 * size**3 / min(taken_s))
        size *= 2
        next_s = 8 * (1 + PRODUCTS) * min(taken_s)
        if size > LARGEST_PRODUCT[device.type] or time.perf_counter() + next_s > deadline_s:
            return best


def _seconds_of_product(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    start = time.perf_counter()
    functional.linear(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start


@functools.cache
def usual_rate(device: torch.device, dtype: torch.dtype) -> float:
    """``matmul_rate`` in a tenth of a second: good enough to say how long a run will take."""
    size = SMALLEST_PRODUCT
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        taken_s = min(_seconds_of_product(a, b) for _ in range(3))
        if taken_s > USUAL_PRODUCT_SECONDS or size == LARGEST_PRODUCT[device.type]:
            return 2.0 * size**3 / taken_s
        size *= 2
