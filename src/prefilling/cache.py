"""Keys and values into one cache per prompt: a padded batch cache that generation goes on from."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from .layout import Layout

NEARLY_ALL = 0.9  # of a cache's rows
WIDE = torch.complex128  # a type of 16 bytes: rows are viewed as it, to be copied 16 bytes at a time


def new_cache() -> DynamicCache:
    """An empty cache that keeps every position.

    Built without the model's config on purpose: with it, a sliding-window model would trim a packed row to its window.
    """
    return DynamicCache()


class CacheWriter:
    """Writes keys and values, layer by layer as a forward computes them, into the padded cache of a batch.

    Nothing is ever held packed and unpacked at once. Where each prompt had a row of its own already, a layer is one
    copy, padded as the rows were; else its tokens are scattered, left-padded, into zeros (an empty tensor might hold
    NaN, which a mask does not stop).

    Args:
        lengths: int64 [k], tokens of each prompt of the batch.
        layers, kv_heads, head_dim: of the model.
        laps: called with ``forward`` before and ``unpack`` after each scatter.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        layers: int,
        kv_heads: int,
        head_dim: int,
        laps: Callable[[str], object],
    ) -> None:
        self._lengths = lengths
        self._shape = (len(lengths), int(lengths.max()), 2, kv_heads, head_dim)
        self._lines: list[torch.Tensor | None] = [None] * layers
        self._laps = laps
        self._pads: torch.Tensor | None = None  # int64, places of what is padding, where they are needed
        self.places: torch.Tensor | None = None  # int64 [tokens of the running forward]; None: rows as they are

    @property
    def spare(self) -> int:
        """The place of what is padding in a packed row."""
        return self._shape[0] * self._shape[1]

    def keep(self, layer: int, kv: torch.Tensor) -> None:
        """Take a layer's keys and values, [tokens, 2 * kv_heads * head_dim]; they are copied."""
        if self.places is None:
            self._lines[layer] = kv.clone(memory_format=torch.contiguous_format)
            return
        self._laps("forward")
        line = self._lines[layer]
        if line is None:
            line = self._lines[layer] = self._padded(kv)
        places = self.places.to(kv.device)  # layers of a model that is split are on several devices
        _scatter(line, places, kv)
        self._laps("unpack")

    def _padded(self, like: torch.Tensor) -> torch.Tensor:
        """A line for one layer, zeros wherever no token will come.

        On a CPU it is ordinary memory where nearly all of it will be written, for malloc may have such memory at hand;
        else fresh pages of zeros, which cost nothing until they are written.
        """
        if like.device.type == "cpu" and int(self._lengths.sum()) >= NEARLY_ALL * self.spare:
            if self._pads is None:
                pads = np.arange(self._shape[1]) < self._shape[1] - self._lengths[:, None]
                self._pads = torch.from_numpy(np.append(np.flatnonzero(pads), self.spare))
            return like.new_empty(self.spare + 1, like.shape[1]).index_fill_(0, self._pads, 0)
        return _zeros(self.spare + 1, like)

    def cache(self) -> DynamicCache:
        """The batch's cache: per layer keys and values [k, kv_heads, longest, head_dim], views of what was written."""
        found = new_cache()
        for number, line in enumerate(self._lines):
            assert line is not None
            keys, values = line[: self.spare].view(self._shape).permute(2, 0, 3, 1, 4)
            found.update(
                keys[:, :, :0], values[:, :, :0], number
            )  # creates the layer; an update with all of it would copy
            layer: Any = found.layers[number]
            layer.keys, layer.values = keys, values
        return found


def _scatter(line: torch.Tensor, places: torch.Tensor, kv: torch.Tensor) -> None:
    """Copy rows into ``line``; on a GPU 16 bytes at a time, for copying by elements is bound by their number.

    Both have to lie so that 16 bytes are aligned, which heads of any usual size do.
    """
    size = WIDE.itemsize // kv.element_size()
    wide = kv.device.type == "cuda" and all(
        number % size == 0 for each in (line, kv) for number in (each.shape[1], each.stride(0), each.storage_offset())
    )
    line, kv = (line.view(WIDE), kv.view(WIDE)) if wide else (line, kv)
    line.index_copy_(0, places, kv)


def _zeros(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Zeros [rows, columns of ``like``]. On a CPU fresh pages from the kernel, which come into being when written.

    Most of a padded cache is pads. Pages that hold nothing else take neither the time to fill them nor memory.
    """
    if like.device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return like.new_zeros(rows, like.shape[1])
    pages = mmap.mmap(-1, rows * like.shape[1] * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)  # with huge pages, a few tokens would take 2 MB
    return torch.frombuffer(pages, dtype=like.dtype).view(rows, like.shape[1])


@torch.inference_mode()
def unpack(cache: DynamicCache, layout: Layout, device: torch.device) -> torch.Tensor:
    """Scatter a packed cache, in place, into one left-padded row per prompt (the paper, section 3.1).

    The protocol of the paper does this once its forward is done; ``modern`` writes each layer where it belongs as it is
    computed (``CacheWriter``). Layer by layer, each packed tensor being freed before the next layer is scattered, so
    that at most one layer is held twice. What goes where is found on the host, which never waits for the device.

    Args:
        cache: per layer keys and values [rows, kv_heads, width, head_dim]; becomes [k, kv_heads, longest, head_dim].
        layout: where each prompt lies in the packed rows; a prompt may be of no token.
        device: where the mask goes.

    Returns:
        The attention mask of the cache, int64 [k, longest]: 0 on pads, 1 on a prompt's tokens.
    """
    row, start, length = layout.row, layout.start, layout.length
    k, longest = len(length), int(length.max())
    mask = np.arange(longest) >= (longest - length)[:, None]
    prompt, to_column = mask.nonzero()
    from_column = start[prompt] + to_column - (longest - length[prompt])
    moved: dict[torch.device, list[torch.Tensor]] = {}  # layers of a model that is split are on several devices
    layer: Any
    for layer in cache.layers:
        here = layer.keys.device
        if here not in moved:
            places = (prompt, to_column, row[prompt], from_column)
            moved[here] = [torch.from_numpy(each).to(here, non_blocking=True) for each in places]
        to_row, to, from_row, from_ = moved[here]
        for name in ("keys", "values"):
            source = getattr(layer, name)
            target = source.new_zeros(k, source.shape[1], longest, source.shape[3])
            target[to_row, :, to] = source[from_row, :, from_]
            setattr(layer, name, target)
    return torch.from_numpy(mask.astype(np.int64)).to(device, non_blocking=True)
