"""Searches for the largest batch that each method prefills: doubles it until memory runs out, then halves the gap."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

from .. import terminal
from ..cli import UserError
from ..compose import compose
from ..config import Config
from ..measure.gpus import gpus
from ..measure.plan import Plan, prepare
from ..measure.process import available_mb
from ..prefilling.shape import Shape
from .apart import run_apart
from .trying import drive, tried

GAP = 8  # the search ends when what fails is less than an eighth larger than what fits
MOST = 16_384  # prompts; a method that still fits then is not searched further


def sizes(first: int) -> Generator[int, str, tuple[int, int]]:
    """The sizes that a search tries, each of which is to be answered with the status of its record.

    Returns:
        The largest that fits (0: none did), and the least that failed (above ``MOST``: none did).
    """
    size, fits, fails = first, 0, MOST + 1
    while fails - fits > max(1, fits // GAP):
        status = yield size
        if status == "ok":
            fits = size
        elif status in {"oom", "skipped"}:
            fails = size
        else:  # the dataset has no more prompts, or it failed for another reason: larger sizes would not help
            break
        # Double while nothing has failed; then try the middle between what fits and what fails.
        size = min(2 * fits, MOST) if fails > MOST else (fits + fails) // 2
        if fits == MOST or size < 1:
            break
    return fits, fails


def search(
    overrides: list[str], results_dir: Path, may_start: Callable[[Plan], bool] = lambda plan: True,
    measure: Callable[[Plan], object] = lambda plan: run_apart(plan.config, plan),
) -> dict[str, int]:  # fmt: skip
    """Find each method's largest batch; every size tried is a record, so that a search cut off goes on.

    Args:
        overrides: an experiment with ``num_prompts: ${batch_size}``, whose batch size is where the search begins.
        may_start: asked before a size is measured.
        measure: measures one size.

    Returns:
        By method the largest batch size that was prefilled, 0 where none was.

    Raises:
        OutOfTime: ``may_start`` said no.
    """
    first = compose(overrides)
    found = {}
    for method in first.compared_methods:

        def status_of(size: int, method: str = method) -> str:
            config = compose([*overrides, f"methods=[{method}]", f"batch_size={size}"])
            return _status(config, results_dir, may_start, measure)

        fits, fails = drive(sizes(first.batch_size), status_of)
        terminal.say(f"largest batch of {method}: {fits}" + (f" ({fails} fails)" if fails <= MOST else ""))
        found[method] = fits
    return found


def _status(
    config: Config, results_dir: Path, may_start: Callable[[Plan], bool], measure: Callable[[Plan], object]
) -> str:
    try:
        plan = prepare(config)
    except UserError as error:
        if error.setting != "batch_size":
            raise
        return "too few prompts"
    row = tried(plan, results_dir, may_start, measure)
    return "error" if row is None else row.status


def seconds(plans: list[Plan], estimated: Callable[[Plan, float], float]) -> float:
    """Estimated seconds of a whole search, as if nothing of it were recorded.

    A size fails where a lower bound of its memory does.

    Args:
        plans: for each method the comparison that its search begins with.
        estimated: seconds of a comparison with so many times as many prompts in its batch.
    """
    total = 0.0
    for plan in plans:
        first, memory_mb = plan.config.batch_size, _memory_mb(plan)
        asked: list[int] = []

        def status_of(size: int, plan: Plan = plan, memory_mb: float = memory_mb, asked: list[int] = asked) -> str:
            asked.append(size)
            return "ok" if _needed_mb(plan, size) <= memory_mb else "oom"

        drive(sizes(first), status_of)
        total += sum(estimated(plan, size / first) for size in asked)
    return total


def _needed_mb(plan: Plan, size: int) -> float:
    """Lower bound of the memory that a batch of ``size`` prompts needs, in MB of 2**20 bytes."""
    assignment, element = plan.methods[0], plan.dtype.itemsize
    rows, width = max(assignment.shapes, key=lambda shape: shape[0] * shape[1])
    rows = -(-rows * size // plan.config.batch_size)
    positions = rows * width if plan.config.protocol == "paper" else size
    return Shape.of(plan.source.config).bytes(rows, width, positions, element) / 2**20


def _memory_mb(plan: Plan) -> float:
    if plan.config.memory_limit_mb:
        return plan.config.memory_limit_mb
    if plan.device.type == "cuda":
        return gpus()[plan.device.index or 0].memory_mb
    return available_mb() or float("inf")
