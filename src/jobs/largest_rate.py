"""Searches for the largest rate of arrivals at which the 99th percentile of the time to first token keeps an objective.

Rates are the powers of two and seven between each two of them, 9 % apart, the same for every method and machine. A
search doubles or halves until one rate keeps the objective and another breaks it, then halves the gap between them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from .. import terminal
from ..cli import warn
from ..compose import compose
from ..config import Config
from ..measure.gpus import rate as matmul_rate
from ..measure.plan import Plan, prepare, results_dir_of
from ..prefilling.shape import Shape
from ..records.row import Row
from .apart import run_apart
from .duration import REACHED
from .trying import drive, tried

PER_DOUBLING = 8
LOWEST, HIGHEST = -10 * PER_DOUBLING, 14 * PER_DOUBLING  # a prompt in a quarter of an hour, and 16,000 a second
IDLE = 0.05  # busy share below which waiting is not what breaks the objective: a batch alone takes longer
RUNS = 7  # of a search, about

KEEPS, BREAKS, SHORT, HOPELESS, FAILED = "keeps", "breaks", "short", "hopeless", "failed"
Bracket = tuple[float, float | None]  # the largest rate that keeps the objective, the least that breaks it


def rate_of(step: int) -> float:
    """Prompts a second, in three digits."""
    return float(f"{2 ** (step / PER_DOUBLING):.3g}")


def steps(first: int) -> Generator[int, str, tuple[int | None, int | None]]:
    """The steps that a search tries, each of which is to be answered with what became of it.

    Returns:
        The largest that keeps the objective, and the least above it that breaks it; None where there is none, or where
        so few prompts come within so short a time there that nothing can be told.
    """
    step, keeps, breaks, short = first, None, None, None
    while keeps is None or breaks is None or breaks - keeps > 1:
        found = yield step
        if found == KEEPS:
            keeps = step
        elif found in (BREAKS, SHORT):
            breaks, short = step, step if found == SHORT else short
        else:
            return keeps, step if found == HOPELESS else breaks
        if keeps is not None and breaks is not None:
            step = (keeps + breaks) // 2
        else:
            step += PER_DOUBLING if breaks is None else -PER_DOUBLING
        if not LOWEST <= step <= HIGHEST:
            break
    return keeps, None if breaks == short else breaks


def became_of(row: Row) -> str:
    """Whether a run kept the objective."""
    if row.status != "ok" or row.ttft_p99_s is None or row.slo_ms is None:
        return FAILED
    return judged(row.stable, 1000 * row.ttft_p99_s <= row.slo_ms, row.busy_share or 0.0)


def judged(stable: bool | None, in_time: bool, busy_share: float) -> str:
    """What became of a rate, by whether the device kept up, whether p99 was in time, and how busy it was."""
    if stable is None and in_time:
        return SHORT
    if stable and in_time:
        return KEEPS
    return HOPELESS if busy_share < IDLE else BREAKS


def search(
    overrides: list[str], results_dir: Path, may_start: Callable[[Plan], bool] = lambda plan: True,
    measure: Callable[[Plan], object] = lambda plan: run_apart(plan.config, plan),
) -> dict[str, Bracket]:  # fmt: skip
    """Find each method's largest rate; every rate tried is a record, so that a search cut off goes on.

    Args:
        overrides: settings with ``slo_ms`` and without ``rate``.
        may_start: asked before a rate is measured.
        measure: measures one rate.

    Returns:
        By method the largest rate that kept the objective (0: none did), and the least that broke it (None: none did).

    Raises:
        OutOfTime: ``may_start`` said no.
    """
    first = compose(overrides)
    found: dict[str, Bracket] = {}
    for method in first.compared_methods:
        own = [*overrides, f"methods=[{method}]"]

        def answer(step: int, own: list[str] = own) -> str:
            return _try([*own, f"rate={rate_of(step)}"], results_dir, may_start, measure)

        ends = drive(steps(_first_step(prepare(compose(own)))), answer)
        keeps, breaks = (None if end is None else rate_of(end) for end in ends)
        found[method] = keeps or 0.0, breaks
        terminal.say(f"largest rate of {method}, {first.policy}: {in_words(found[method], first.slo_ms)}")
    return found


def search_and_print(config: Config, overrides: list[str]) -> int:
    """Search as one run asks for it, and say what was found last. Returns 1 where no rate of a method was measured."""
    found = search(overrides, results_dir_of(config))
    lines = [f"  {method}: {in_words(each, config.slo_ms)}" for method, each in found.items()]
    terminal.say("", f"largest rates at which p99 stays within {config.slo_ms:g} ms, {config.policy}:", *lines)
    return int(not all(keeps or breaks for keeps, breaks in found.values()))


def in_words(found: Bracket, slo_ms: float | None) -> str:
    """What a search found, for people."""
    keeps, breaks = found
    if not keeps:
        return f"none: at {breaks:g} prompts a second p99 is above {slo_ms:g} ms" if breaks else "none was measured"
    return f"{keeps:g} prompts a second" + (f" ({breaks:g} is too much)" if breaks else ", or more")


def _try(
    overrides: list[str], results_dir: Path, may_start: Callable[[Plan], bool], measure: Callable[[Plan], object]
) -> str:
    row = tried(prepare(compose(overrides)), results_dir, may_start, measure)
    if row is None:
        return FAILED
    if row.valid is False:
        warn(f"{row.method} at {row.rate:g} prompts a second is INVALID; the search goes by it all the same")
    return became_of(row)


def _first_step(plan: Plan) -> int:
    """Where a search begins: about half of what whole batches could serve, at the nearest power of two."""
    shape = Shape.of(plan.source.config)
    operations = sum(shape.operations(*size, len(batch)) for batch, size in zip(
        plan.methods[0].batches, plan.methods[0].shapes, strict=True))  # fmt: skip
    seconds = operations / (REACHED[plan.device.type] * matmul_rate(plan.device, plan.dtype))
    step = round(PER_DOUBLING * float(np.log2(0.5 * len(plan.prompts.token_ids) / seconds)))
    return min(max(PER_DOUBLING * round(step / PER_DOUBLING), LOWEST), HIGHEST)


def seconds(plans: list[Plan], estimated: Callable[[Plan, float], float]) -> float:
    """Estimated seconds of a whole search, as if nothing of it were recorded.

    Args:
        plans: for each method the comparison that its search begins with.
        estimated: seconds of a comparison.
    """
    return sum(RUNS * estimated(plan, 1.0) for plan in plans)
