"""A batch into the rows that a model sees: which are computed at once, and what lies where in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .method import Method, Pack
from .packing import Bins

PAD_TOKEN = 0
# On a CPU a batch is computed by parts of so many tokens at most, unless it is to be computed at once: what a layer
# hands to the next stays in the caches, and memory for it is taken from the system once, not in each layer.
CPU_TOKENS = 2048
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What one forward computes: all of a batch, or the part of it that stays within the token budget of a forward.

    Attributes:
        rows: the numbers, within the batch, of the prompts of each row.
        width: tokens of a row.
    """

    rows: Bins
    width: int

    @property
    def prompts(self) -> Ints:
        """Its prompts, ascending, int64 [k]."""
        return np.array(sorted(prompt for row in self.rows for prompt in row), dtype=np.int64)

    @property
    def computed_tokens(self) -> int:
        """Token positions that pass through the model, pads included."""
        return len(self.rows) * self.width


def parts_of(
    method: Method, lengths: Sequence[int], pack: Pack, most: int | None = None, bins: Bins | None = None
) -> list[Part]:
    """What is computed at once under the ``modern`` protocol: all of a batch, or whole rows within a token budget.

    Args:
        lengths: tokens of each prompt of the batch.
        most: tokens of a forward; what is longer goes alone. None: no limit.
        bins: the batch's bins where the whole dataset was packed beforehand; None: the method packs.
    """
    if method.rows == "batch":
        return [Part([row], sum(lengths[prompt] for prompt in row)) for row in _within(most, lengths)]
    longest = max(lengths)
    if method.rows == "prompt":
        parts = _within(most, [longest] * len(lengths))
        return [Part([[prompt] for prompt in part], longest) for part in parts]
    rows = bins or pack(lengths, longest)
    widths = [sum(lengths[prompt] for prompt in row) for row in rows]
    parts = _within(most, [max(widths)] * len(rows))
    return [Part([rows[row] for row in part], max(widths[row] for row in part)) for part in parts]


def most_at_once(limit: int | None, device_type: str) -> int | None:
    """Tokens of a forward at most: the limit, and on a CPU what its caches hold; None: a batch is computed at once."""
    return limit if limit is None or device_type != "cpu" else min(limit, CPU_TOKENS)


def scatters(method: Method, parts: Sequence[Part], windowed: bool) -> bool:
    """Whether keys and values are scattered into a cache of left-padded rows.

    A padded method's rows are its cache already, unless parts or a sliding window ask for left padding.
    """
    return method.packs or len(parts) > 1 or windowed


def _within(most: int | None, tokens: Sequence[int]) -> Bins:
    """Numbers of what is computed at once: in their order, at most ``most`` tokens; what is longer goes alone."""
    parts: Bins = [[]]
    held = 0
    for number, length in enumerate(tokens):
        if most is not None and parts[-1] and held + length > most:
            parts.append([])
            held = 0
        parts[-1].append(number)
        held += length
    return parts


@dataclass(frozen=True)
class Layout:
    """Prompts laid in rows of equal width.

    Attributes:
        token_ids, positions: int64 [rows, width]; positions start at 0 in each prompt (restart positions).
        segments: int64 [rows, width]; the prompt's number in the batch, -1 on pads.
        row, start, length: int64 [k]; where each prompt lies: ``token_ids[row, start : start + length]``.
    """

    token_ids: Ints
    positions: Ints
    segments: Ints
    row: Ints
    start: Ints
    length: Ints

    @property
    def computed_tokens(self) -> int:
        """Token positions that pass through the model, pads included."""
        return self.token_ids.size

    @property
    def flat_start(self) -> Ints:
        """int64 [k]; where each prompt begins when all rows stand in one line."""
        return self.row * self.token_ids.shape[1] + self.start

    def places(self, numbers: Ints, longest: int, spare: int) -> Ints:
        """Where each position's keys and values go in the batch's cache of one left-padded row a prompt.

        Args:
            numbers: int64 [k], the place of each of this layout's prompts in the batch.
            longest: columns of the cache.
            spare: where pads go.

        Returns:
            int64 [rows * width], row * longest + column of the cache.
        """
        first = (numbers + 1) * longest - self.length
        of_prompt = first[self.segments] + self.positions  # pads (-1) index the last prompt, and are replaced below
        return np.where(self.segments >= 0, of_prompt, spare).ravel()


def left_padded(prompts: Sequence[Ints]) -> Layout:
    """One prompt a row, padded on the left to the longest: what full-batching computes in the paper's code."""
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int64)
    return _lay(prompts, np.arange(len(prompts)), lengths.max() - lengths, int(lengths.max()))


def right_padded(prompts: Sequence[Ints], width: int | None = None) -> Layout:
    """One prompt a row, padded on the right, where causality alone keeps pads from being seen: no mask is needed.

    Args:
        width: tokens of a row; None: as many as the longest prompt has.
    """
    width = width or max(len(ids) for ids in prompts)
    return _lay(prompts, np.arange(len(prompts)), np.zeros(len(prompts), dtype=np.int64), width)


def packed(prompts: Sequence[Ints], bins: Bins) -> Layout:
    """One bin a row, its prompts end to end, rows as wide as the fullest bin (the paper, section 3.1).

    Prompts may be empty (a one-token prompt whose last token is left out): they lie nowhere, with length 0.
    """
    row, start = np.zeros((2, len(prompts)), dtype=np.int64)
    width = 0
    for number, members in enumerate(bins):
        at = 0
        for prompt in members:
            row[prompt], start[prompt] = number, at
            at += len(prompts[prompt])
        width = max(width, at)
    return _lay(prompts, row, start, width, rows=len(bins))


def _lay(prompts: Sequence[Ints], row: Ints, start: Ints, width: int, rows: int | None = None) -> Layout:
    shape = (rows if rows is not None else len(prompts), width)
    token_ids = np.full(shape, PAD_TOKEN, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1, dtype=np.int64)
    length = np.array([len(ids) for ids in prompts], dtype=np.int64)
    ramp = np.arange(width, dtype=np.int64)
    for number, ids in enumerate(prompts):
        span = (row[number], slice(start[number], start[number] + len(ids)))
        token_ids[span] = ids
        positions[span] = ramp[: len(ids)]
        segments[span] = number
    return Layout(token_ids, positions, segments, row, start, length)
