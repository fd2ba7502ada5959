"""The largest batch that each method prefills before memory runs out, by search: double until it fails, then halve."""

from __future__ import annotations

from pathlib import Path

from src.apart import run_apart
from src.cli import UserError
from src.config import Config, compose
from src.measure import records
from src.measure.plan import prepare

GAP = 8  # the search ends when what fails is less than an eighth larger than what fits
MOST = 16_384  # prompts; a method that still fits then is not searched further


def search(overrides: list[str], results_dir: Path) -> dict[str, int]:
    """Find each method's largest batch; every size tried is a record, so that a search cut off goes on.

    Args:
        overrides: an experiment with ``num_prompts: ${batch_size}``, whose batch size is where the search begins.

    Returns:
        By method the largest batch size that was prefilled, 0 where none was.
    """
    first, _ = compose(overrides)
    return {method: _search(method, first.batch_size, overrides, results_dir) for method in first.compared_methods}


def _search(method: str, size: int, overrides: list[str], results_dir: Path) -> int:
    fits, fails = 0, MOST + 1
    while fails - fits > max(1, fits // GAP):
        status = _status(compose([*overrides, f"methods=[{method}]", f"batch_size={size}"])[0], results_dir)
        if status == "ok":
            fits = size
        elif status in {"oom", "skipped"}:
            fails = size
        else:  # the dataset has no more prompts, or it failed for another reason: more would tell nothing
            break
        # Up while nothing has failed; else between what fits and what fails.
        size = min(2 * fits, MOST) if fails > MOST else (fits + fails) // 2
        if fits == MOST or size < 1:
            break
    print(f"largest batch of {method}: {fits}" + (f" ({fails} fails)" if fails <= MOST else ""), flush=True)
    return fits


def _status(config: Config, results_dir: Path) -> str:
    try:
        plan = prepare(config)
    except UserError as error:
        if error.setting != "batch_size":
            raise
        return "too few prompts"
    if plan.recorded() is None:
        run_apart(config)
    try:
        return records.read(results_dir / plan.run_id(plan.outcomes[0].method)).row.status
    except ValueError:
        return "error"
