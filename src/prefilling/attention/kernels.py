"""Which attention kernels there are, and which of them serves."""

from __future__ import annotations

from types import ModuleType

import torch

from ...cli import UserError
from . import dense, flash, flex, native, segments, varlen

AUTO = "auto"
KERNELS: dict[str, ModuleType] = {module.NAME: module for module in (segments, native, dense, varlen, flex, flash)}


def pick_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """What ``auto`` is: the first of these that serves: varlen (CUDA, half precision), native (CPUs), segments."""
    return next(kernel.NAME for kernel in (varlen, native, segments) if kernel.missing(device, dtype) is None)


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
