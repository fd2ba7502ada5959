"""Peak memory of a span: torch's own counters on a GPU, the kernel's high-water mark of the process on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from .nvml import MB
from .process import resident_mb, status_mb

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


@dataclass(frozen=True)
class Peak:
    """Peak memory in MB (2**20 bytes); None where it does not apply or the system does not say.

    ``swapped_mb`` is how much more of the process was swapped out at the end of the span than at its start.
    """

    allocated_mb: float | None = None
    reserved_mb: float | None = None
    resident_mb: float | None = None
    resident_before_mb: float | None = None
    swapped_mb: float | None = None


def keep_freed_memory() -> None:
    """Have the C library keep and reuse the memory that large tensors free, as serving on CPUs is tuned.

    By default each tensor of over 32 MB is mapped anew from the kernel, which fills its pages with zeros at every first
    touch: without it, prefills of llama-15m took 1.10 to 1.16 times as long, full-batching most. GPUs have torch's own
    allocator for this. Does nothing where the C library is another than GNU's.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        pass


def give_back() -> bool:
    """Give memory that was freed back to the system, which the C library and torch keep for their next tensors.

    It would count as the next method's; and within a limit other libraries, which have allocators of their own, would
    find none left.

    Returns:
        Whether the C library did so; only GNU's can.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # after an error that no call recovers from, as after a bad address
            torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def tensors_mb(*devices: torch.device) -> float:
    """What torch's tensors hold on GPUs now, in MB; 0 on a CPU."""
    return sum(torch.cuda.memory_allocated(device) for device in devices if device.type == "cuda") / MB


class PeakMemory:
    """``reset`` before a span, ``read`` after it; of several GPUs the sum of each one's peak."""

    def __init__(self, *devices: torch.device) -> None:
        self._devices = devices
        self._before_mb: float | None = None
        self._swap_before_mb: float | None = None
        self._resettable = False

    def reset(self) -> None:
        """Give back what earlier work left, then set the high-water marks to what is in use now."""
        trimmed = give_back()
        self._swap_before_mb = status_mb("VmSwap")
        if self._devices[0].type == "cuda":
            self.mark()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._resettable = trimmed  # where it is not, no peak rather than a wrong one
        except OSError:  # not Linux, or not allowed
            self._resettable = False
        self._before_mb = resident_mb()

    def mark(self) -> None:
        """Set a GPU's high-water marks to what is in use now, and leave torch's allocator what it has."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)

    def read(self, held_by_others_mb: float = 0.0) -> Peak:
        """The high-water marks since ``reset`` or ``mark``.

        Args:
            held_by_others_mb: tensors on the GPU that are no business of what was measured, as ``tensors_mb`` has it.
        """
        swap_mb = status_mb("VmSwap")
        swapped_mb = None if swap_mb is None or self._swap_before_mb is None else swap_mb - self._swap_before_mb
        if self._devices[0].type == "cuda":
            return Peak(
                allocated_mb=sum(map(torch.cuda.max_memory_allocated, self._devices)) / MB - held_by_others_mb,
                reserved_mb=sum(map(torch.cuda.max_memory_reserved, self._devices)) / MB,
                swapped_mb=swapped_mb,
            )
        resident = status_mb("VmHWM") if self._resettable else None
        return Peak(resident_mb=resident, resident_before_mb=self._before_mb, swapped_mb=swapped_mb)
