"""The rates that this machine reaches: operations of matrix products and bytes of copies, a second."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..cli import ran_out_of_memory, warn
from ..prefilling import onednn
from .process import available_mb

SMALLEST_PRODUCT = 128
LARGEST_PRODUCT = {"cpu": 4096, "cuda": 16384}
USUAL_PRODUCT_SECONDS = 0.02
PRODUCTS = 5  # of each size
PRODUCT_SECONDS = 0.8

BUFFER_BYTES = {"cpu": 256 * 2**20, "cuda": 512 * 2**20}  # several times the last cache of each kind
SHARE_OF_MEMORY = 1 / 8  # each of the two buffers takes at most this share of the free memory
LEAST_BUFFER_BYTES = 2**20
AT_ONCE = {"cpu": 1, "cuda": 8}  # copies between two waits: on a GPU launching and waiting take 3 % of one
COPIES = 6
COPY_SECONDS = 0.5


@dataclass(frozen=True)
class Rates:
    """What this machine reached: ``operations_per_s`` of matrix products, ``bytes_per_s`` read plus written."""

    operations_per_s: float
    bytes_per_s: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Measure both rates, in about two seconds at most; None, with a note, where memory does not suffice for that."""
    try:
        return Rates(matmul_rate(device, dtype), copy_bandwidth(device))
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        warn("there is too little memory to measure this machine's rates: records will have no limit")
        return None


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy within the device's memory, read and written ones both counted: the best of several.

    The two buffers are larger than the caches, and smaller than an eighth of the free memory each. A processor that
    fetches a line before it overwrites it moves half as much again as is counted; all else it does pays the same.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else (available_mb() or 4096) * 2**20
    size = max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES[device.type], int(free * SHARE_OF_MEMORY)))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)  # written, so that its pages exist
    best, deadline_s = math.inf, time.perf_counter() + COPY_SECONDS
    for attempt in range(COPIES):
        _wait(device)
        start = time.perf_counter()
        for _ in range(AT_ONCE[device.type]):
            target.copy_(source)
        _wait(device)
        end = time.perf_counter()
        best = min(best, (end - start) / AT_ONCE[device.type])
        if attempt and end > deadline_s:
            break
    return 2.0 * size / best


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of square matrix products: the best of several products of several sizes.

    Products as a model's layers have them, by a transposed weight: a processor without units for bfloat16 takes five to
    ten times as long for others. On CPUs also by a weight that is laid out for oneDNN, as the fused forward has it:
    which library is the faster depends on the processor, by a factor of more than two.

    Sizes double, each warm before it is timed, while the next ones still fit into about a second: so a type that the
    processor only emulates (bfloat16 on many CPUs, at a hundredth of the rate) takes no longer, and a fast device gets
    products large enough to reach its rate. Memory: three matrices of at most ``LARGEST_PRODUCT`` squared.
    """
    size, best, deadline_s = SMALLEST_PRODUCT, 0.0, math.inf
    while True:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        ways = _products(a, b)
        taken_s = [min(_seconds_of(way, device) for way in ways) for _ in range(1 + PRODUCTS)][1:]
        if deadline_s == math.inf:  # the first product of all loads libraries
            deadline_s = time.perf_counter() + PRODUCT_SECONDS
        best = max(best, 2.0 * size**3 / min(taken_s))
        size *= 2
        next_s = 8 * (1 + PRODUCTS) * len(ways) * min(taken_s)
        if size > LARGEST_PRODUCT[device.type] or time.perf_counter() + next_s > deadline_s:
            return best


def _products(a: torch.Tensor, b: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
    """The ways in which ``a`` times ``b`` transposed can be computed."""
    ways: list[Callable[[], torch.Tensor]] = [lambda: functional.linear(a, b)]
    if (laid_out := onednn.lay_out(b)) is not None:
        ways.append(lambda: onednn.linear(a, laid_out, None))
    return ways


def _seconds_of(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    product()
    _wait(device)
    return time.perf_counter() - start


@functools.cache
def usual_rate(device: torch.device, dtype: torch.dtype) -> float:
    """``matmul_rate`` in a tenth of a second, or until memory runs out: good enough to say how long a run will take."""
    size, found = SMALLEST_PRODUCT, 0.0
    while True:
        try:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            taken_s = min(_seconds_of(way, device) for way in _products(a, b) for _ in range(3))
        except Exception as error:
            if not found or not ran_out_of_memory(error):
                raise
            return found
        found = 2.0 * size**3 / taken_s
        if taken_s > USUAL_PRODUCT_SECONDS or size == LARGEST_PRODUCT[device.type]:
            return found
        size *= 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
