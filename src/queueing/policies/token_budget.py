"""First come, first served, up to ``token_budget`` tokens and ``batch_size`` prompts; a prompt of more goes alone."""

from __future__ import annotations

from collections.abc import Sequence

from ..policy import Choose, Rules


def make(rules: Rules) -> Choose:
    """The policy."""

    def choose(waiting: Sequence[int], now_s: float) -> Sequence[int]:
        chosen, tokens = [waiting[0]], int(rules.lengths[waiting[0]])
        for number in waiting[1 : rules.batch_size]:
            tokens += int(rules.lengths[number])
            if tokens > rules.token_budget:
                break
            chosen.append(number)
        return chosen

    return choose
