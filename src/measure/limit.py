"""The least time of a prefill: the operations and bytes that no method can avoid, over the machine's measured rates.

The least work that gives the KV of every token and the logits at every prompt's last one, no padding anywhere:

- Linear layers see each token once. In the last layer only keys and values are needed of every token; the query, the
  output projection and the MLP serve nothing but the logits, and are needed at last positions only.
- Attention is causal: token i of a prompt sees i keys (in a sliding-window model, as many as the window holds), which
  makes l (l + 1) / 2 pairs for a prompt of l tokens.
- Bytes: each weight is read once, each key and value written once. Activations may stay in caches and count nothing.

Operations are those of matrix products; norms, rotations, softmax and activations are left out, so the bound holds
whatever they cost. Prompts that share a prefix count as if they did not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..prefilling.shape import Shape, causal_pairs
from .rates import Rates

TOKEN_ID_BYTES = 8  # int64, as the methods pass them
Lengths = Sequence[int] | NDArray[np.int64]


def least_operations(shape: Shape, lengths: Lengths) -> float:
    """Floating-point operations (a multiplication and an addition are two) that no method can do without.

    Args:
        lengths: tokens of each prompt of a batch, at least 1 each.

    Additive: two batches cost what their union costs.
    """
    length = np.asarray(lengths, dtype=np.int64)
    tokens, k = length.sum(), len(length)
    in_last = tokens * shape.kv_parameters + k * (shape.layer_parameters / shape.layers - shape.kv_parameters)
    linear = tokens * shape.layer_parameters * (shape.layers - 1) / shape.layers + in_last
    seen_by_last = length if shape.window is None else np.minimum(length, shape.window)  # keys of a last token
    pairs = causal_pairs(length, shape.window)
    per_layer = shape.attention / shape.layers
    attention = 2 * per_layer * ((shape.layers - 1) * pairs + seen_by_last.sum())  # scores, then values
    return float(2 * (linear + attention + k * shape.vocabulary))


def least_bytes(shape: Shape, lengths: Lengths, element_size: int, weight_size: float | None = None) -> float:
    """Bytes that no method can avoid moving to or from memory for one batch.

    Args:
        lengths: tokens of each prompt of the batch.
        element_size: bytes of an element of KV, embedding and head.
        weight_size: bytes of an element of the layers' weights, where they are quantized: 1 or 0.5.
    """
    tokens = int(np.sum(lengths))
    # Rows of the embedding are read once at most; where it is also the head, the head has brought them.
    rows = 0 if shape.tied else min(tokens, shape.vocab_size)
    hidden = shape.vocabulary / shape.vocab_size
    layers = shape.layer_parameters * (element_size if weight_size is None else weight_size)
    return (
        layers + element_size * (shape.vocabulary + rows * hidden + tokens * shape.kv_width) + TOKEN_ID_BYTES * tokens
    )


def limit_seconds(
    shape: Shape, lengths: Lengths, element_size: int, rates: Rates, weight_size: float | None = None
) -> float:
    """Seconds that a batch takes at least at the measured rates: the larger of computing and moving, fully overlapped.

    Arguments as for ``least_bytes``. A row's ``fraction_of_limit`` is the sum over its batches over the measured time.
    """
    computing = least_operations(shape, lengths) / rates.operations_per_s
    moving = least_bytes(shape, lengths, element_size, weight_size) / rates.bytes_per_s
    return max(computing, moving)
