"""Like lengths together: one queue for each range of lengths, and the queue of the one who waits longest is served.

As BucketServe (arXiv 2507.17120) and Multi-Bin Batching (arXiv 2412.04504, there by the length of the answer) do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..policy import Choose, Rules


def make(rules: Rules) -> Choose:
    """The policy. What is longer than the last bound belongs to a bucket of its own."""
    bucket = np.searchsorted(rules.buckets, rules.lengths)

    def choose(waiting: Sequence[int], now_s: float) -> Sequence[int]:
        own = bucket[waiting[0]]
        return [number for number in waiting if bucket[number] == own][: rules.batch_size]

    return choose
