"""What searches share: sizes or rates are tried one by one, and what a try found says which comes next."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

from ..measure.plan import Plan
from ..records import store as records
from ..records.row import Row

Answer = TypeVar("Answer")


class OutOfTime(Exception):
    """The next try does not fit into the time that is left; the search goes on from its records."""


def drive(tries: Generator[int, str, Answer], answer: Callable[[int], str]) -> Answer:
    """Answer each try of a search until it ends; what it found."""
    try:
        tried = next(tries)
        while True:
            tried = tries.send(answer(tried))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def tried(
    plan: Plan, results_dir: Path, may_start: Callable[[Plan], bool], measure: Callable[[Plan], object]
) -> Row | None:
    """The row of a try, measured unless it is recorded; None where it ended before it could write one.

    Args:
        plan: of one method.
        may_start: asked before it is measured.
        measure: measures it.

    Raises:
        OutOfTime: ``may_start`` said no.
    """
    if plan.config.rerun or plan.recorded() is None:
        if not may_start(plan):
            raise OutOfTime
        measure(plan)
    try:
        return records.read(results_dir / plan.run_id(plan.methods[0].method)).row
    except ValueError:  # it has printed why
        return None
