"""Linear layers of CPUs by oneDNN, with weights laid out for it beforehand."""

from __future__ import annotations

import os

import torch

# How many products' kernels oneDNN keeps, each for one shape: it generates a kernel anew for every number of tokens, in
# 0.3 to 0.7 ms. Its default, 1,024, is less than what some hundred batches by several methods take, and batches of
# llama-15m took 4 % longer. It reads this before its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def lay_out(weight: torch.Tensor) -> torch.Tensor | None:
    """A second copy of a weight [outputs, inputs], laid out for oneDNN; None where torch cannot (by type or device).

    It is what torch's compiler does with frozen weights on CPUs.
    """
    ops = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return None
    if weight.dtype != torch.float32 and not (weight.dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported()):
        return None
    laid_out: torch.Tensor = ops._reorder_linear_weight(weight, None)
    return laid_out


def linear(x: torch.Tensor, laid_out: torch.Tensor, bias: torch.Tensor | None, silu: bool = False) -> torch.Tensor:
    """[n, outputs] of ``x`` [n, inputs]; with ``silu``, through that activation."""
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "swish" if silu else "none", [], "")
    return y
