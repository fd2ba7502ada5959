"""How often 95 % intervals hold the truth, by simulation: the table of docs/measuring.md.

python scripts/coverage.py [seed] [trials]: one line per regime and number of repeats, a column per number of batches;
each cell is the percentage for the speedup, then for the mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import stats

# Standard deviations of log: cost of a batch, its true ratio, drift of a repeat shared by both methods, drift of one
# method, noise of a sample; and how far a batch's ratio goes with its cost (correlation).
REGIMES = {
    "all mixed": (0.4, 0.1, 0.02, 0.01, 0.02, 0.0),
    "batches": (0.4, 0.2, 0.02, 0.0, 0.01, 0.0),
    "drift": (0.4, 0.02, 0.02, 0.03, 0.01, 0.0),
    "uneven, ratio goes with cost": (0.8, 0.2, 0.02, 0.01, 0.02, 0.7),
    "noise alone": (0.4, 0.0, 0.0, 0.0, 0.03, 0.0),
}
REPEATS, BATCHES, RESAMPLES = (3, 5, 10), (8, 16, 40), 499
Regime = tuple[float, float, float, float, float, float]


def draw(rng: np.random.Generator, repeats: int, batches: int, regime: Regime) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [repeats, batches] of a method and of one that is about twice as fast, over the same batches."""
    cost_sigma, ratio, shared, own, noise, correlation = regime
    size = rng.normal(0, 1, batches)
    cost = np.exp(cost_sigma * size) * np.exp(rng.normal(0, shared, (repeats, 1)))
    log_ratio = ratio * (correlation * size + np.sqrt(1 - correlation**2) * rng.normal(0, 1, batches))

    def one() -> np.ndarray:
        return cost * np.exp(rng.normal(0, own, (repeats, 1)) + rng.normal(0, noise, (repeats, batches)))

    other = one()
    return one() * 2 * np.exp(log_ratio), other


def truth(regime: Regime) -> tuple[float, float]:
    """Speedup over all batches there could be, and the faster method's mean seconds per batch."""
    cost_sigma, ratio, shared, own, noise, correlation = regime
    mean = np.exp((cost_sigma**2 + shared**2 + own**2 + noise**2) / 2)
    return float(2 * np.exp(ratio**2 / 2 + correlation * ratio * cost_sigma)), float(mean)


def coverage(regime: Regime, repeats: int, batches: int, trials: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of trials whose interval holds the truth: of the speedup, of the mean."""
    speedup, mean = truth(regime)
    hits = np.zeros(2)
    for _ in range(trials):
        base, other = draw(rng, repeats, batches, regime)
        for place, (found, true) in enumerate(
            (
                (stats.speedup_interval(base, other, True, 0, RESAMPLES), speedup),
                (stats.mean_interval(other, True, 0, RESAMPLES), mean),
            )
        ):
            hits[place] += found.low <= true <= found.high
    return float(hits[0] / trials), float(hits[1] / trials)


def main() -> None:
    """Print the table."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    trials = int(sys.argv[2]) if len(sys.argv) > 2 else 400
    rng = np.random.default_rng(seed)
    print("| regime | R | " + " | ".join(f"B = {batches}" for batches in BATCHES) + " |")
    print("|---|---|" + "---|" * len(BATCHES))
    for name, regime in REGIMES.items():
        for repeats in REPEATS:
            cells = [coverage(regime, repeats, batches, trials, rng) for batches in BATCHES]
            shown = " | ".join(f"{100 * speedup:.1f} / {100 * mean:.1f}" for speedup, mean in cells)
            print(f"| {name} | {repeats} | {shown} |", flush=True)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    else:
        main()
