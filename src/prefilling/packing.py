"""Prompt lengths into bins (bin packing). Integers only: nothing here knows what a token or a device is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..cli import warn

Bins = list[list[int]]  # for each bin the indices of the prompts in it, in the order they are laid
OPTIMAL_SECONDS = 5.0


def lower_bound(lengths: Sequence[int], capacity: int) -> int:
    """Bins that no packing can go below: the larger of the volume bound and the number of items over half a bin."""
    return max(-(-sum(lengths) // capacity), sum(2 * length > capacity for length in lengths))


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> Bins:
    """Longest first, each into the first bin with room (the paper, section 3.2). O(n log n).

    The room of all bins stands in a tournament tree whose inner nodes hold the larger room below them, so the first
    bin with enough of it is found by walking down, not by looking at every bin.

    Args:
        lengths: tokens of each prompt, at least 1 each.
        capacity: tokens that a bin holds.

    Raises:
        ValueError: a length is below 1 or above the capacity.
    """
    _check(lengths, capacity)
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    bins: Bins = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(index)
        room[node] -= length
        while node > 1:
            node //= 2
            larger = max(room[2 * node], room[2 * node + 1])
            if room[node] == larger:
                break
            room[node] = larger
    return bins


def binpacking_package(lengths: Sequence[int], capacity: int) -> Bins:
    """The ``binpacking`` package's constant-volume packing, which the paper's code calls. Quadratic.

    Raises:
        ValueError: a length is below 1 or above the capacity.
    """
    import binpacking

    _check(lengths, capacity)
    packed = binpacking.to_constant_volume(dict(enumerate(lengths)), capacity)
    return [list(bin_) for bin_ in packed if bin_]


def optimal(lengths: Sequence[int], capacity: int, seconds: float = OPTIMAL_SECONDS) -> Bins:
    """As few bins as possible, by integer programming (scipy's HiGHS) where first-fit decreasing is not provably so.

    Each prompt goes into exactly one of the bins that first-fit decreasing needed; the fewest of them are opened.
    Where the solver proves nothing within ``seconds``, the best packing found so far is kept, with a warning.

    Raises:
        ValueError: a length is below 1 or above the capacity.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    best = first_fit_decreasing(lengths, capacity)
    least = lower_bound(lengths, capacity)
    if len(best) == least:
        return best
    n, r = len(lengths), len(best)
    item, bin_ = np.divmod(np.arange(n * r), r)  # variable i*r+b: item i lies in bin b; the last r: bin b is open
    size = np.asarray(lengths)
    ones = np.ones(n * r)
    placed_once = coo_array((ones, (item, np.arange(n * r))), shape=(n, n * r + r))
    within_capacity = coo_array(
        (
            np.concatenate([size[item], np.full(r, -capacity)]),
            (np.concatenate([bin_, np.arange(r)]), np.arange(n * r + r)),
        ),
        shape=(r, n * r + r),
    )
    opened_in_order = coo_array(
        (
            np.concatenate([np.ones(r - 1), -np.ones(r - 1)]),
            (np.tile(np.arange(r - 1), 2), n * r + np.concatenate([np.arange(r - 1), np.arange(1, r)])),
        ),
        shape=(r - 1, n * r + r),
    )
    opened = np.concatenate([np.zeros(n * r), np.ones(r)])
    solution = milp(
        opened,
        integrality=np.ones(n * r + r),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(placed_once.tocsr(), 1, 1),
            LinearConstraint(within_capacity.tocsr(), -np.inf, 0),
            LinearConstraint(opened_in_order.tocsr(), 0, np.inf),
            LinearConstraint(coo_array(opened[None]).tocsr(), least, r),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if solution.x is not None:
        chosen = solution.x[: n * r].reshape(n, r).argmax(axis=1)
        found = [np.flatnonzero(chosen == b).tolist() for b in range(r)]
        found = [members for members in found if members]
        if len(found) < len(best):
            best = found
    if solution.status != 0:
        warn(f"packing=optimal proved nothing in {seconds:g} s for {n} prompts: {len(best)} bins, at least {least}")
    return best


def _check(lengths: Sequence[int], capacity: int) -> None:
    if len(lengths) and (min(lengths) < 1 or max(lengths) > capacity):
        raise ValueError(f"lengths must lie in 1 to {capacity}, found {min(lengths)} to {max(lengths)}")


PACKINGS: dict[str, Callable[[Sequence[int], int], Bins]] = {
    "ffd": first_fit_decreasing,
    "binpacking": binpacking_package,
    "optimal": optimal,
}
