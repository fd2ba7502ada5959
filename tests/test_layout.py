from __future__ import annotations

import numpy as np
import torch
from conftest import draw_prompts
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from src.prefilling.attention.dense import independent_mask
from src.prefilling.cache import unpack
from src.prefilling.layout import Layout, left_padded, packed, right_padded
from src.prefilling.packing import first_fit_decreasing

lengths_of_a_batch = st.lists(st.integers(1, 25), min_size=1, max_size=12)


def lay_packed(lengths: list[int]) -> tuple[list[np.ndarray], Layout]:
    prompts = draw_prompts(lengths)
    return prompts, packed(prompts, first_fit_decreasing(lengths, max(lengths)))


@given(lengths=lengths_of_a_batch)
def test_every_layout_gives_each_prompt_back_with_positions_from_zero(lengths: list[int]) -> None:
    prompts, in_bins = lay_packed(lengths)
    for layout in (in_bins, left_padded(prompts), right_padded(prompts)):
        for number, prompt in enumerate(prompts):
            span = (layout.row[number], slice(layout.start[number], layout.start[number] + layout.length[number]))
            assert layout.token_ids[span].tolist() == prompt.tolist()
            assert layout.positions[span].tolist() == list(range(len(prompt)))
            assert set(layout.segments[span]) == {number}
        assert (layout.segments >= 0).sum() == sum(lengths)
        assert layout.token_ids[layout.segments < 0].sum() == 0
        assert layout.computed_tokens == layout.token_ids.shape[0] * max(lengths)


def test_padded_prompts_end_in_the_last_column() -> None:
    layout = left_padded(draw_prompts([3, 1, 5]))
    assert (layout.start + layout.length).tolist() == [5, 5, 5]


def test_a_row_is_as_wide_as_the_fullest_bin() -> None:
    layout = packed(draw_prompts([4, 3, 2]), [[0], [1, 2]])
    assert layout.token_ids.shape == (2, 5)
    assert layout.segments.tolist() == [[0, 0, 0, 0, -1], [1, 1, 1, 2, 2]]


def test_a_prompt_with_nothing_left_lies_nowhere() -> None:
    layout = packed([np.array([7, 8]), np.array([], dtype=np.int64)], [[0, 1]])
    assert layout.token_ids.tolist() == [[7, 8]]
    assert layout.length.tolist() == [2, 0]
    assert packed([np.array([], dtype=np.int64)] * 2, [[0], [1]]).computed_tokens == 0


@given(lengths=lengths_of_a_batch, window=st.none() | st.integers(1, 8))
def test_the_mask_lets_a_token_see_its_own_prompt_up_to_itself(lengths: list[int], window: int | None) -> None:
    _, layout = lay_packed(lengths)
    mask = independent_mask(torch.from_numpy(layout.segments), window)
    rows, width = layout.segments.shape
    assert mask.shape == (rows, 1, width, width)
    same = layout.segments[:, :, None] == layout.segments[:, None, :]
    query, key = np.indices((width, width))
    seen = same & (key <= query) & (query - key < (window or width))
    assert (mask[:, 0].numpy() == seen).all()
    assert mask.any(-1).all()


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=10).filter(any))
def test_unpacking_gives_each_prompt_its_own_keys_and_values(lengths: list[int]) -> None:
    prompts = draw_prompts(lengths)
    layout = packed(prompts, first_fit_bins(lengths))
    rows, width = layout.token_ids.shape
    cache = DynamicCache()
    originals = []
    for layer in range(2):
        keys, values = torch.randn(2, rows, 3, width, 4)
        cache.update(keys, values, layer)
        originals.append((keys.clone(), values.clone()))
    mask = unpack(cache, layout, torch.device("cpu"))
    longest = max(lengths)
    assert mask.tolist() == [[0] * (longest - n) + [1] * n for n in lengths]
    for layer, pair in zip(cache.layers, originals, strict=True):
        for ours, original in zip((layer.keys, layer.values), pair, strict=True):
            assert ours.shape == (len(lengths), 3, longest, 4)
            for number, n in enumerate(lengths):
                at = int(layout.start[number])
                assert torch.equal(ours[number, :, longest - n :], original[layout.row[number], :, at : at + n])
                assert not ours[number, :, : longest - n].any()


def first_fit_bins(lengths: list[int]) -> list[list[int]]:
    """Pack as prepacking does when last tokens are left out: by the whole length, one more than what is laid."""
    return first_fit_decreasing([n + 1 for n in lengths], max(lengths) + 1)
