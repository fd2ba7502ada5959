"""A value with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEW = 5  # an interval over fewer draws than this is flagged: t with under four degrees of freedom is a guess


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; ``low`` and ``high`` are NaN where there is too little to tell.

    ``few``: it rests on fewer than five batches, or repeats where only those are draws, or on a single repeat.
    ``invalid``: it is of a measurement that something speaks against relying on.
    """

    value: float
    low: float
    high: float
    few: bool = False
    invalid: bool = False

    @property
    def precision(self) -> float:
        """Half the interval's width over its value; infinite where there is no interval."""
        return float("inf") if math.isnan(self.low) else (self.high - self.low) / 2 / self.value

    def verdict(self, noise_floor: float = 0.0) -> str:
        """``faster``, ``slower`` or ``inconclusive``, for a speedup.

        Args:
            noise_floor: difference that does not count, 0.01 for 1 %: the whole interval must lie beyond 1 ± it.
        """
        if self.low > 1 + noise_floor:
            return "faster"
        return "slower" if self.high < 1 - noise_floor else "inconclusive"
