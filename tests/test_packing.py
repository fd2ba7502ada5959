from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.prefilling.packing import PACKINGS, Bins, first_fit_decreasing, lower_bound, optimal
from src.workload.profiles import read_profile

batches = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def naive_first_fit_decreasing(lengths: list[int], capacity: int) -> Bins:
    bins: Bins = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for members in bins:
            if sum(lengths[i] for i in members) + lengths[index] <= capacity:
                members.append(index)
                break
        else:
            bins.append([index])
    return bins


@pytest.mark.parametrize("name", sorted(PACKINGS))
@given(lengths=batches, spare=st.integers(0, 30))
def test_every_packing_holds_each_prompt_once_within_capacity(name: str, lengths: list[int], spare: int) -> None:
    if name == "optimal":
        lengths = lengths[:20]  # of more some take seconds to prove
    capacity = max(lengths) + spare
    bins = PACKINGS[name](lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(members for members in bins)
    assert max(sum(lengths[index] for index in members) for members in bins) <= capacity
    assert len(bins) >= lower_bound(lengths, capacity)


@given(lengths=batches, spare=st.integers(0, 30))
def test_the_tree_packs_as_a_scan_over_all_bins_would(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    assert first_fit_decreasing(lengths, capacity) == naive_first_fit_decreasing(lengths, capacity)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), spare=st.integers(0, 10))
def test_optimal_needs_as_few_bins_as_exhaustive_search(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    assert len(optimal(lengths, capacity)) == fewest_bins(sorted(lengths, reverse=True), capacity)


def fewest_bins(lengths: list[int], capacity: int) -> int:
    best = len(lengths)

    def place(at: int, rooms: list[int]) -> None:
        nonlocal best
        if len(rooms) >= best:
            return
        if at == len(lengths):
            best = len(rooms)
            return
        for number, room in enumerate(rooms):
            if room >= lengths[at] and room not in rooms[:number]:
                place(at + 1, [*rooms[:number], room - lengths[at], *rooms[number + 1 :]])
        place(at + 1, [*rooms, capacity - lengths[at]])

    place(0, [])
    return best


def test_optimal_beats_first_fit_decreasing_where_it_can() -> None:
    lengths, capacity = [44, 24, 24, 22, 21, 17, 8, 8, 6, 6], 61
    assert (len(first_fit_decreasing(lengths, capacity)), len(optimal(lengths, capacity))) == (4, 3)


def test_optimal_keeps_a_good_packing_and_says_so_when_time_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [44, 24, 24, 22, 21, 17, 8, 8, 6, 6] * 12
    bins = optimal(lengths, 61, seconds=0.0)
    assert sorted(index for members in bins for index in members) == list(range(120))
    assert "proved nothing in 0 s for 120 prompts" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(PACKINGS))
@pytest.mark.parametrize("lengths", [[3, 11], [0, 4]])
def test_lengths_outside_the_bin_are_refused(name: str, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths must lie in 1 to 10"):
        PACKINGS[name](lengths, 10)


def test_a_hundred_thousand_prompts_take_seconds() -> None:
    profile, _ = read_profile("mmlu")
    lengths = np.random.default_rng(0).choice(profile, 100_000).tolist()
    start = time.perf_counter()
    bins = first_fit_decreasing(lengths, max(lengths))
    assert time.perf_counter() - start < 5
    assert len(bins) <= 1.01 * lower_bound(lengths, max(lengths)) + 1


def test_batches_of_real_lengths_come_close_to_the_bound() -> None:
    profile, _ = read_profile("mmlu")
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(200):
        lengths = rng.choice(profile, 64).tolist()
        reached += len(first_fit_decreasing(lengths, max(lengths))) == lower_bound(lengths, max(lengths))
    assert reached >= 180
