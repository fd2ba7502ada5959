"""What the fused forward does element by element: norms, rotary positions, gates, residuals. Plain, native or compiled.

Each plain operation is a kernel of its own that reads and writes memory. On a GPU torch's compiler makes one of a pass,
at its first call, for lines of any length; on a CPU norms and rotary positions are kernels in C++, if there are some.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from . import cpp

MOST_COMPILED = 256  # times that one function is compiled


@dataclass(frozen=True)
class Passes:
    """The passes of a forward, as functions, and what they are, in a word."""

    name: str
    rms: Callable[..., torch.Tensor]
    add_rms: Callable[..., torch.Tensor]
    gated: Callable[..., torch.Tensor]
    rotate: Callable[..., None]


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension."""
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add ``y`` to the residual ``x``, in place; the RMS norm of the sum."""
    x.add_(y)
    return rms(x, weight, eps)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SiLU of the gate, times what it lets through; the gate is overwritten."""
    return functional.silu(gate, inplace=True).mul_(up)


def rotate(qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotary positions in place: qk [n, heads, head_dim]; cos, sin [n, 1, head_dim / 2]."""
    first, second = qk.chunk(2, dim=-1)
    turned = second * cos
    turned.addcmul_(first, sin)
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.copy_(turned)


PLAIN = Passes("torch", rms, add_rms, gated, rotate)


def _native_rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Of whole rows; those of single heads lie apart and are left to torch."""
    return cpp.rms(x, weight, eps) if x.dim() == 2 and cpp.alike(x, weight) else rms(x, weight, eps)


def _native_add_rms(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return cpp.rms(x, weight, eps, y) if cpp.alike(x, weight, y) else add_rms(x, y, weight, eps)


def _native_rotate(qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    side_by_side = qk.stride()[1:] == (qk.shape[2], 1) and cos.stride() == sin.stride() and cos.stride(2) == 1
    (cpp.rotate if side_by_side and qk.dtype == cos.dtype == sin.dtype else rotate)(qk, cos, sin)


NATIVE = Passes("C++", _native_rms, _native_add_rms, gated, _native_rotate)


def fastest(device: torch.device, dtype: torch.dtype) -> Passes:
    """The passes for a model of this type there."""
    return NATIVE if device.type == "cpu" and dtype in cpp.TYPES and cpp.missing() is None else PLAIN


@functools.cache
def compiled() -> Passes:
    """The same, compiled at their first call."""
    return Passes("compiled", *(compiled_whole(each, dynamic=True) for each in (rms, add_rms, gated, rotate)))


def compiled_whole(function: Callable[..., Any], dynamic: bool) -> Any:
    """A function that is compiled at its first call, and anew for what that code does not serve.

    By default torch goes on with the plain function, without a word, where it cannot compile all of it or has compiled
    it eight times: what is then measured is not what the record says. Here that is an error (a RuntimeError), and the
    limit is high enough for any run.

    Args:
        dynamic: compile for sizes of any length; else for each size anew.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    config.recompile_limit = max(config.recompile_limit, MOST_COMPILED)
    made = torch.compile(function, dynamic=dynamic, fullgraph=True)

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return made(*arguments, **named)
        except FailOnRecompileLimitHit as error:  # alone among torch's errors of compiling it is no RuntimeError
            problem = f"compiled {config.recompile_limit} times already, and not for these sizes"
            raise RuntimeError(problem) from error

    return call
