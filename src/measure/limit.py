"""What a machine cannot go below: the least operations and bytes of a prefill, over the rates measured on the machine.

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

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from src.measure import machine
from src.measure.estimate import Shape, matmul_rate

BUFFER_BYTES = {"cpu": 256 * 2**20, "cuda": 512 * 2**20}  # several times the last cache of each kind
SHARE_OF_MEMORY = 1 / 8  # the most that one of the two buffers takes of what is free
LEAST_BUFFER_BYTES = 2**20
COPIES = 6
COPY_SECONDS = 0.5
TOKEN_ID_BYTES = 8  # int64, as the methods pass them
Lengths = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Rates:
    """What this machine reached: ``operations_per_s`` of matrix products, ``bytes_per_s`` read plus written."""

    operations_per_s: float
    bytes_per_s: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure both rates, in about two seconds at most."""
    return Rates(matmul_rate(device, dtype), copy_bandwidth(device))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy within the device's memory, read and written ones both counted: the best of several.

    The two buffers are larger than the caches, and smaller than an eighth of the free memory each. A processor that
    fetches a line before it overwrites it moves half as much again as is counted; all else it does pays the same.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else (machine.available_mb() or 4096) * 2**20
    size = max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES[device.type], int(free * SHARE_OF_MEMORY)))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # written, so that its pages exist
    best, deadline_s = math.inf, time.perf_counter() + COPY_SECONDS
    for attempt in range(COPIES):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        end = time.perf_counter()
        best = min(best, end - start)
        if attempt and end > deadline_s:
            break
    return 2.0 * size / best


def least_operations(shape: Shape, lengths: Lengths) -> float:
    """Floating-point operations (a multiplication and an addition are two) that no method can do without.

    Args:
        lengths: tokens of each prompt of a batch, at least 1 each.

    Additive: two batches cost what their union costs.
    """
    length = np.asarray(lengths, dtype=np.float64)
    tokens, k = length.sum(), len(length)
    in_last = tokens * shape.kv_parameters + k * (shape.layer_parameters / shape.layers - shape.kv_parameters)
    linear = tokens * shape.layer_parameters * (shape.layers - 1) / shape.layers + in_last
    seen_by_last = np.minimum(length, shape.window)  # keys that a prompt's last token sees
    # Pairs: a ramp up to the window, then as many as it holds for each further token.
    pairs = seen_by_last * (seen_by_last + 1) / 2 + (length - seen_by_last) * seen_by_last
    per_layer = shape.attention / shape.layers
    attention = 2 * per_layer * ((shape.layers - 1) * pairs.sum() + seen_by_last.sum())  # scores, then values
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
