"""The shortest prompts first, and a prompt ages: each second that it waits counts as ``ageing`` tokens less.

So nobody starves: one of L tokens that has waited for L / ageing seconds comes before every prompt that just arrived.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..policy import Choose, Rules


def make(rules: Rules) -> Choose:
    """The policy. Time itself does not change who comes first, as all age alike: the arrival does."""
    rank = rules.lengths + rules.ageing * rules.arrivals_s

    def choose(waiting: Sequence[int], now_s: float) -> Sequence[int]:
        order = np.argsort(rank[list(waiting)], kind="stable")[: rules.batch_size]
        return [waiting[place] for place in order]

    return choose
