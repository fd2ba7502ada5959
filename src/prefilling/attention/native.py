"""Attention by segment on a CPU, by a kernel in C++ that is compiled for the processor.

Torch's own kernel for CPUs takes the segments of a call as equally long and reaches a fifth of the rate of matrix
products. This one takes segments as they are, by blocks of queries, the costliest first, so that threads end together.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .. import cpp
from ..shape import causal_pairs
from .spans import Attention, Spans

NAME = "native"
WORDS = "by segment, C++ for this processor"
LARGEST = 2**31 - 1  # window that a C integer holds
OPERATOR = "prepack_bench::attend"  # its name in a profile


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel cannot serve; None where it can."""
    if device.type != "cpu":
        return "this kernel is for CPUs; use attention=auto"
    if dtype not in cpp.TYPES:
        return f"this kernel has no {str(dtype).removeprefix('torch.')}; use attention=segments"
    return cpp.missing()


@dataclass(frozen=True)
class Native(Attention):
    """Segments as blocks of queries.

    Attributes:
        blocks: int32 [blocks, 3], as ``cpp.attend`` takes them.
        run: calls it.
    """

    blocks: NDArray[np.int32]
    pairs: int
    run: Callable[..., None]
    operator: str = OPERATOR

    def to(self, device: torch.device) -> Native:
        """Itself: it stays on the host."""
        return self

    def _attend(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        self.run(self, qkv, heads, kv_heads, scale, out, window)
        return out


def _run(
    made: Native, qkv: torch.Tensor, heads: int, kv_heads: int, scale: float, out: torch.Tensor, window: int | None
) -> None:
    line = qkv.to(out.dtype).contiguous()  # a layer that computes in another type hands that on
    cpp.attend(line, out, made.blocks, heads, kv_heads, scale, None if window is None else min(window, LARGEST))


@functools.cache
def _untraced() -> Callable[..., None]:
    """Torch's compiler cannot follow pointers, where the layers of a model were compiled in place."""
    found: Callable[..., None] = torch.compiler.disable(_run)
    return found


def plan(spans: Spans) -> Native:
    """Cut segments into blocks; a later block sees more keys, and costs more."""
    most = cpp.queries_of_a_block()
    number = -(-spans.lengths // most)
    segment = np.repeat(np.arange(len(number)), number)
    first = (np.arange(len(segment)) - (np.cumsum(number) - number)[segment]) * most
    count = np.minimum(most, spans.lengths[segment] - first)
    blocks = np.column_stack([spans.starts[segment], first, count])[np.argsort(-(first + count), kind="stable")]
    run = _untraced() if "torch._dynamo" in sys.modules else _run  # importing the compiler takes seconds
    return Native(np.ascontiguousarray(blocks, dtype=np.int32), causal_pairs(spans.lengths, spans.widest), run)
