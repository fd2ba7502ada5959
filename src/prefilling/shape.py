"""What the cost of a forward depends on, read from a model's configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Shape:
    """What the cost of a forward depends on.

    Attributes:
        layer_parameters: weights of all layers; vocabulary: hidden size times vocabulary; attention: layers times
            the heads' total width; kv_width: keys and values of one token, elements over all layers.
        layers: their number; query_parameters, kv_parameters: weights of one layer's projections to queries, and to
            keys and values; tied: the head is the embedding; window: keys that a query sees at most, None where it
            sees all before it (a model whose layers differ counts by the widest).
    """

    layer_parameters: int
    vocabulary: int
    vocab_size: int
    attention: int
    kv_width: int
    layers: int
    query_parameters: int
    kv_parameters: int
    tied: bool
    window: int | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Read the shape of a Llama-like model."""
        hidden, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        kv_heads, head_dim = heads_of(config)
        queries, kv = hidden * head_dim * heads, 2 * hidden * head_dim * kv_heads
        per_layer = 2 * queries + kv + 3 * hidden * config.intermediate_size
        return cls(
            layer_parameters=layers * per_layer,
            vocabulary=hidden * config.vocab_size,
            vocab_size=config.vocab_size,
            attention=layers * heads * head_dim,
            kv_width=2 * layers * kv_heads * head_dim,
            layers=layers,
            query_parameters=queries,
            kv_parameters=kv,
            tied=bool(config.tie_word_embeddings),
            window=widest_of(windows_of(config)),
        )

    @property
    def rest_of_last_layer(self) -> float:
        """Weights that the fused forward passes at last positions only: of the last layer all but those of Q, K, V."""
        return self.layer_parameters / self.layers - self.query_parameters - self.kv_parameters

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


def heads_of(config: PretrainedConfig) -> tuple[int, int]:
    """Heads of keys and values, and the width of a head, which older configurations leave out."""
    heads, kind = int(config.num_attention_heads), cast("Any", type(config))
    kv_heads = config.num_key_value_heads if "num_key_value_heads" in _declared(kind) else None
    head_dim = getattr(config, "head_dim", None)  # read also by families that do not declare it
    return kv_heads or heads, head_dim or config.hidden_size // heads


def windows_of(config: PretrainedConfig) -> tuple[int | None, ...]:
    """The sliding windows of a model's layers, in tokens, each once; None stands for layers without one."""
    declared = _declared(cast("Any", type(config)))
    window = config.sliding_window if "sliding_window" in declared else None
    kinds = set(config.layer_types or []) if "layer_types" in declared else set()
    if window is None or kinds == {"full_attention"}:
        return (None,)
    return (window, None) if "full_attention" in kinds else (window,)


@functools.cache
def _declared(kind: Any) -> frozenset[str]:
    """The fields that a class of configurations declares, whichever of its bases does.

    A configuration keeps fields that its family does not know, and the family's layers pass over them: a Llama that
    says ``sliding_window`` has none.
    """
    classes = (each for each in kind.__mro__ if "__init__" in vars(each))
    return frozenset(name for each in classes for name in inspect.signature(vars(each)["__init__"]).parameters)


def widest_of(windows: Iterable[int | None]) -> int | None:
    """The widest of sliding windows, where None is one that holds everything."""
    found = list(windows)
    return None if None in found else max(window for window in found if window is not None)


def causal_pairs(lengths: NDArray[np.int64], window: int | None = None) -> int:
    """Query-key pairs of causal attention within segments of these lengths: a ramp, no higher than a sliding window.

    Args:
        lengths: integers [segments].
        window: keys that a query sees at most, itself included.
    """
    lengths = np.asarray(lengths, dtype=np.int64)  # squares of narrower ones would overflow
    highest = lengths if window is None else np.minimum(lengths, window)
    return int((highest * (highest + 1) // 2 + (lengths - highest) * highest).sum())
