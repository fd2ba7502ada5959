"""How long and how much memory a run will take, before it starts: rough, from operations and a measured rate."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

REACHED = 0.6  # share of the matrix-product rate that whole prefills were seen to reach on CPUs
PROBE_SIZE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Shape:
    """What the cost of a forward depends on.

    Attributes:
        layer_parameters: weights of all layers; vocabulary: hidden size times vocabulary; attention: layers times
            the heads' total width; kv_width: keys and values of one token, elements over all layers.
    """

    layer_parameters: int
    vocabulary: int
    vocab_size: int
    attention: int
    kv_width: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Read the shape of a Llama-like model."""
        hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or hidden // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        per_layer = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * config.intermediate_size
        return cls(
            layer_parameters=layers * per_layer,
            vocabulary=hidden * config.vocab_size,
            vocab_size=config.vocab_size,
            attention=layers * heads * head_dim,
            kv_width=2 * layers * kv_heads * head_dim,
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
    """Floating-point operations per second of a square matrix product, the best of five."""
    size = PROBE_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def in_words(seconds: float) -> str:
    """``40 s`` or ``7 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
