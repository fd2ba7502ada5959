"""Of the first ``lookahead`` who wait, the batches that pad or pack best; then it looks again.

What was looked at is served to its end before anyone who came later, so that nobody starves. A look of one batch is
first come, first served; a look at everything is the offline oracle, which knew all prompts beforehand: sorted by
length, or, for methods that pack rows, packed as a whole, ``batch_size`` rows a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...prefilling.method import dataset_bins
from ...workload.batches import length_ordered_batches
from ..policy import Choose, Rules


def make(rules: Rules) -> Choose:
    """The policy."""
    planned: list[list[int]] = []

    def choose(waiting: Sequence[int], now_s: float) -> Sequence[int]:
        if not planned:
            seen = list(waiting[: rules.lookahead])
            lengths = rules.lengths[seen]
            if rules.method.rows == "bin":
                batches, _ = dataset_bins(lengths, rules.batch_size, rules.pack)
            else:
                batches = length_ordered_batches(lengths, rules.batch_size)
            planned.extend([seen[place] for place in batch] for batch in batches)
        return planned.pop(0)

    return choose
