"""How often 95 % intervals hold the truth, by simulation: the table of docs/measuring.md.

python scripts/coverage.py [seed] [trials]: one line per regime, a column per number of batches; each cell is the
percentage for the speedup, then for the mean, over all numbers of repeats (``trials`` of each).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import stats
from src.prefilling.packing import first_fit_decreasing

PROFILES = Path(__file__).resolve().parents[1] / "src" / "workload" / "length_profiles"
PROMPTS, POOL = (16, 32, 64), 2000  # prompts in a batch; batches that there are to draw from
ATTENTION = 12_000  # tokens at which attention costs as much as all else does: 6 times the width of Llama2-1.3B
REPEATS, BATCHES, RESAMPLES = (3, 5, 10), (6, 8, 16, 40), 499


class Regime(Protocol):
    """A population of batches, and what disturbs their timing."""

    def draw(self, rng: np.random.Generator, repeats: int, batches: int) -> tuple[stats.Seconds, stats.Seconds]:
        """Seconds [repeats, batches] of full-batching and of a faster method, over the same batches."""

    @property
    def truth(self) -> tuple[float, float]:
        """Speedup over all batches there could be, and the faster method's mean seconds per batch."""


@dataclass(frozen=True)
class Disturbance:
    """Standard deviations of log: drift of a repeat shared by both methods, drift of one method, noise of a sample."""

    shared: float
    own: float
    noise: float

    def __call__(self, rng: np.random.Generator, repeats: int, cost: list[stats.Seconds]) -> list[stats.Seconds]:
        """Each method's true ``cost`` [batches], as measured in ``repeats``."""
        shared = rng.normal(0, self.shared, (repeats, 1))
        own = [rng.normal(0, self.own, (repeats, 1)) + rng.normal(0, self.noise, (repeats, len(c))) for c in cost]
        return [c * np.exp(shared + drift) for c, drift in zip(cost, own, strict=True)]

    @property
    def mean(self) -> float:
        """What the disturbance multiplies a mean time by."""
        return float(np.exp((self.shared**2 + self.own**2 + self.noise**2) / 2))


@dataclass(frozen=True)
class Lognormal:
    """Batches whose cost and ratio (about 2) are lognormal, with these standard deviations and correlation of logs."""

    cost: float
    ratio: float
    correlation: float
    disturbance: Disturbance

    def draw(self, rng: np.random.Generator, repeats: int, batches: int) -> tuple[stats.Seconds, stats.Seconds]:
        """As `Regime`."""
        size, rest = rng.normal(0, 1, (2, batches))
        ratio = self.ratio * (self.correlation * size + np.sqrt(1 - self.correlation**2) * rest)
        cost = np.exp(self.cost * size)
        base, other = self.disturbance(rng, repeats, [2 * cost * np.exp(ratio), cost])
        return base, other

    @property
    def truth(self) -> tuple[float, float]:
        """As `Regime`."""
        speedup = 2 * np.exp(self.ratio**2 / 2 + self.correlation * self.ratio * self.cost)
        return float(speedup), float(np.exp(self.cost**2 / 2) * self.disturbance.mean)


@dataclass(frozen=True)
class Profile:
    """Batches of prompts as long as those of a real dataset, padded to the longest, against bins or no padding at all.

    The cost of a row is its length, and attention's share, which goes with the square.

    Attributes:
        bins: prompts are packed into bins as long as the longest, each of which costs as much as a padded row; else
            each prompt costs what its own tokens do, as with attention by segment.
    """

    name: str
    prompts: int
    disturbance: Disturbance
    bins: bool = True

    @cached_property
    def costs(self) -> NDArray[np.float64]:
        """Cost of each batch of the pool, [2, POOL]: padded, and packed or without padding."""
        lengths, counts = np.loadtxt(PROFILES / f"{self.name}.csv", delimiter=",", skiprows=1, dtype=int).T
        drawn = np.random.default_rng(0).choice(np.repeat(lengths, counts), (POOL, self.prompts))
        longest = drawn.max(1)
        row = longest * (1 + longest / ATTENTION)
        if not self.bins:
            return np.stack([self.prompts * row, (drawn * (1 + drawn / ATTENTION)).sum(1)])
        bins = [len(first_fit_decreasing(batch.tolist(), int(m))) for batch, m in zip(drawn, longest, strict=True)]
        return np.stack([self.prompts * row, np.array(bins) * row])

    def draw(self, rng: np.random.Generator, repeats: int, batches: int) -> tuple[stats.Seconds, stats.Seconds]:
        """As `Regime`."""
        base, other = self.disturbance(rng, repeats, list(self.costs[:, rng.integers(0, POOL, batches)]))
        return base, other

    @property
    def truth(self) -> tuple[float, float]:
        """As `Regime`."""
        padded, packed = self.costs.mean(1)
        return float(padded / packed), float(packed * self.disturbance.mean)


USUAL = Disturbance(0.02, 0.01, 0.02)
SYNTHETIC: dict[str, Regime] = {
    "all mixed": Lognormal(0.4, 0.1, 0.0, USUAL),
    "batches": Lognormal(0.4, 0.2, 0.0, Disturbance(0.02, 0.0, 0.01)),
    "drift": Lognormal(0.4, 0.02, 0.0, Disturbance(0.02, 0.03, 0.01)),
    "noise alone": Lognormal(0.4, 0.0, 0.0, Disturbance(0.0, 0.0, 0.03)),
    "uneven, ratio goes with cost": Lognormal(0.8, 0.2, 0.7, USUAL),
}
REAL: dict[str, Regime] = {
    f"{path.stem}, batches of {prompts}": Profile(path.stem, prompts, USUAL)
    for path in sorted(PROFILES.glob("*.csv"))
    for prompts in PROMPTS
} | {f"mmlu, batches of {prompts}, no padding": Profile("mmlu", prompts, USUAL, bins=False) for prompts in PROMPTS}


def coverage(regime: Regime, repeats: int, batches: int, trials: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of trials whose interval holds the truth: of the speedup, of the mean."""
    speedup, mean = regime.truth
    hits = np.zeros(2)
    for _ in range(trials):
        base, other = regime.draw(rng, repeats, batches)
        ratio = stats.speedup_interval(base, other, True, RESAMPLES)
        own = stats.mean_interval(other, True, RESAMPLES)
        hits += [ratio.low <= speedup <= ratio.high, own.low <= mean <= own.high]
    return float(hits[0] / trials), float(hits[1] / trials)


def main() -> None:
    """Print the table."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    trials = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    rng = np.random.default_rng(seed)
    print("| regime | " + " | ".join(f"B = {batches}" for batches in BATCHES) + " |")
    print("|---|" + "---|" * len(BATCHES))
    for name, regime in (SYNTHETIC | REAL).items():
        found = [[coverage(regime, repeats, batches, trials, rng) for repeats in REPEATS] for batches in BATCHES]
        cells = 100 * np.array(found).mean(1)
        print(f"| {name} | " + " | ".join(f"{speedup:.1f} / {mean:.1f}" for speedup, mean in cells) + " |", flush=True)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    else:
        main()
