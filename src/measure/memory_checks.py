"""What is not tried, because memory is sure to run out: it cannot fit, or a smaller batch of the same did not."""

from __future__ import annotations

import torch

from ..prefilling.shape import Shape
from ..records import store
from ..records.row import HOW, MACHINE, WORK, Row, key
from . import process
from .outcome import Run
from .rows import identity

# What tells prompts apart while batches of other sizes are compared, whose fingerprints differ.
SAME_PROMPTS = ("dataset", "dataset_detail", "dataset_max_tokens", "seed")


def leave_out_what_cannot_fit(run: Run) -> None:
    """Refuse what is sure not to fit: on a CPU, running out of memory kills the process."""
    plan, available = run.plan, process.available_mb()
    if plan.device.type != "cpu" or available is None:
        return
    shape, size = Shape.of(plan.source.config), torch.empty((), dtype=plan.dtype).element_size()
    for outcome in run.outcomes:
        needed = max(
            shape.bytes(*rows_width, plan.logit_positions(*rows_width, batch), size) / 2**20
            for rows_width, batch in zip(outcome.shapes, outcome.batches, strict=True)
        )
        if needed > available:
            outcome.fail("oom", f"its largest batch needs at least {needed:,.0f} MB, {available:,.0f} MB are available")


def skip_dominated(run: Run) -> None:
    """Skip a method that ran out of memory with smaller batches, all else being equal."""
    ours = {outcome.method.name: identity(run, outcome) for outcome in run.outcomes}
    for record in store.read_all(run.plan.results_dir):
        there = record.row
        here = ours.get(there.method)
        if here is None or there.status != "oom" or there.run_id == here.run_id or there.batch_size > here.batch_size:
            continue
        for outcome in run.outcomes:
            if outcome.method.name == there.method and outcome.status == "ok" and _same_but_for_size(here, there):
                outcome.fail("skipped", f"dominated: memory ran out at batch size {there.batch_size} ({there.run_id})")


def _same_but_for_size(here: Row, there: Row) -> bool:
    size = ("batch_size", "workload_fingerprint")
    if key(here, WORK, HOW, MACHINE, but=size) != key(there, WORK, HOW, MACHINE, but=size):
        return False
    return all(getattr(here, name) == getattr(there, name) for name in SAME_PROMPTS)
