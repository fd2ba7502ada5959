"""Which attention kernels there are, and which of them serves."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...cli import UserError
from . import dense, flash, flex, native, segments, varlen

AUTO = "auto"
KERNELS: dict[str, ModuleType] = {module.NAME: module for module in (segments, native, dense, varlen, flex, flash)}


def pick_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """What ``auto`` is: the first of these that serves: varlen (CUDA, half precision), native (CPUs), segments."""
    return next(kernel.NAME for kernel in (varlen, native, segments) if kernel.missing(device, dtype) is None)


def without_cudnn(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Torch's own choice of kernels for scaled dot-product attention, but for cuDNN's.

    That one is planned anew for every new shape, which takes some 0.4 s, and a Hopper GPU's attention prefers it.
    Batches of the paper's protocol and prompts run alone have each a shape of its own; the authors' torch chose among
    the others.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    chosen = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return cast("contextlib.AbstractContextManager[None]", chosen)


def kernel_of(wanted: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The kernel of the setting ``attention``.

    Raises:
        UserError: it cannot serve on this device, in this type, or with what is installed: why.
    """
    module = KERNELS[pick_kernel(device, dtype) if wanted == AUTO else wanted]
    if reason := module.missing(device, dtype):
        problem, _, remedy = reason.partition("; ")
        raise UserError("attention", problem, remedy)
    return module
