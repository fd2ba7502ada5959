"""Linear layers of CPUs by oneDNN, with weights as they are or laid out for it beforehand."""

from __future__ import annotations

import torch

# OneDNN makes code for every number of rows that it has not seen lately: 3 to 4 ms for the five products of a layer,
# whatever the model's size. Numbers that are multiples of 16 come again and again, and of a small model the up to 15
# rows more cost less than that; with 85 million weights in its layers (llama-110m) as much.
ROWS = 16
SMALL = 2**25  # weights


def serves(x: torch.Tensor) -> bool:
    """Whether ``linear`` can be called, by the device of ``x`` and by torch's build."""
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return x.device.type == "cpu" and torch.backends.mkldnn.is_available() and there


def rows_of(tokens: int, weights: int) -> int:
    """How many rows to compute for so many tokens with layers of so many weights."""
    return -(-tokens // ROWS) * ROWS if weights < SMALL else tokens


def lay_out(weight: torch.Tensor) -> torch.Tensor | None:
    """A second copy of a weight [outputs, inputs], laid out for oneDNN; None where torch cannot (by type or device).

    It is what torch's compiler does with frozen weights on CPUs.
    """
    ops = torch.ops.mkldnn
    if not serves(weight):
        return None
    if weight.dtype != torch.float32 and not (weight.dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported()):
        return None
    laid_out: torch.Tensor = ops._reorder_linear_weight(weight, None)
    return laid_out


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool = False) -> torch.Tensor:
    """[n, outputs] of ``x`` [n, inputs]; with ``silu``, through that activation.

    Args:
        weight: [outputs, inputs], or what ``lay_out`` made of it.
    """
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "swish" if silu else "none", [], "")
    return y
