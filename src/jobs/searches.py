"""The experiments whose runs are searches, in which one measurement says what is measured next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..compose import compose
from ..measure.plan import Plan
from . import largest_batch, largest_rate


class Searcher(Protocol):
    """A module that searches: largest_batch, largest_rate."""

    def search(
        self, overrides: list[str], results_dir: Path, may_start: Callable[[Plan], bool] = ...,
        measure: Callable[[Plan], object] = ...,
    ) -> dict[str, Any]:  # fmt: skip
        """Search for each method's largest."""
        ...

    def seconds(self, plans: list[Plan], estimated: Callable[[Plan, float], float]) -> float:
        """Estimated seconds of a whole search."""
        ...


SEARCHES: dict[str, Searcher] = {"largest_batch": largest_batch, "under_load": largest_rate}


def search(overrides: list[str], results_dir: Path) -> dict[str, Any]:
    """Carry out the search of an experiment, whichever it is; in a job of a cluster, say."""
    return SEARCHES[str(compose(overrides).experiment)].search(overrides, results_dir)
