"""First come, first served, up to ``batch_size`` prompts: what servers of fixed batches do."""

from __future__ import annotations

from collections.abc import Sequence

from ..policy import Choose, Rules


def make(rules: Rules) -> Choose:
    """The policy."""

    def choose(waiting: Sequence[int], now_s: float) -> Sequence[int]:
        return waiting[: rules.batch_size]

    return choose
