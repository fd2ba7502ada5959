"""A method against itself: how often does the harness call two measurements of the same thing different?

Each trial measures one method twice, under two labels, in one process, over the same batches, repeats outermost and the
two labels in random order inside, as a comparison does; the speedup's verdict should then be inconclusive.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OVERRIDES = ["num_prompts=64", "batch_size=8", "repeats=3", "dataset.source=profile", "model.weights=random"]


def main() -> int:
    """Print one line per trial, then how many were called different and the range of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20, help="at most this many (default 20)")
    parser.add_argument("--seconds", type=float, default=150, help="start no trial after this long (default 150)")
    parser.add_argument("overrides", nargs="*", help=f"settings of src.run, after: {' '.join(OVERRIDES)}")
    arguments = parser.parse_args()

    import numpy as np

    from src import stats
    from src.config import compose
    from src.measure.plan import prepare
    from src.measure.runner import timed_seconds
    from src.prefill.models import load_model

    config, _ = compose([*OVERRIDES, "results_dir=${scratch:}", *arguments.overrides])
    plan = prepare(config)
    model = load_model(plan.source, plan.device, plan.dtype, config.loadbit, config.seed)
    outcome, rng = plan.outcomes[0], np.random.default_rng(config.seed)
    timed_seconds(plan, model, outcome)  # warm-up
    found, start = [], time.perf_counter()
    while len(found) < arguments.trials and time.perf_counter() - start < arguments.seconds:
        seconds = np.empty((2, config.repeats, len(outcome.batches)))
        for repeat in range(config.repeats):
            for label in rng.permutation(2):
                gc.disable()
                seconds[label, repeat] = timed_seconds(plan, model, outcome)
                gc.enable()
        interval = stats.speedup_interval(seconds[0], seconds[1], same_batches=not outcome.method.orders_by_length)
        found.append(interval)
        with_floor, without = interval.verdict(config.noise_floor), interval.verdict(0)
        print(f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}] {with_floor}, without a floor {without}")
    for floor in (config.noise_floor, 0.0):
        different = sum(interval.verdict(floor) != "inconclusive" for interval in found)
        print(f"noise floor {floor}: {different} of {len(found)} trials called different")
    ratios = [interval.value for interval in found]
    print(f"ratios {min(ratios):.4f} to {max(ratios):.4f}, standard deviation {np.std(ratios):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
