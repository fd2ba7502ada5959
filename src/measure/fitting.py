"""What is not tried, because memory is sure to run out: it cannot fit, or less of the same kind did not."""

from __future__ import annotations

from typing import Any

import torch

from src.config import as_dict
from src.measure import estimate, machine, records
from src.measure.plan import Plan


def leave_out_what_cannot_fit(plan: Plan) -> None:
    """On a CPU running out of memory kills the process: refuse beforehand what is sure not to fit."""
    available = machine.available_mb()
    if plan.device.type != "cpu" or available is None:
        return
    shape, size = estimate.Shape.of(plan.source.config), torch.empty((), dtype=plan.dtype).element_size()
    for outcome in plan.outcomes:
        needed = max(
            shape.bytes(*rows_width, plan.logit_positions(*rows_width, batch), size) / 2**20
            for rows_width, batch in zip(outcome.shapes, outcome.batches, strict=True)
        )
        if needed > available:
            outcome.fail("oom", f"its largest batch needs at least {needed:,.0f} MB, {available:,.0f} MB are available")


def skip_dominated(plan: Plan) -> None:
    """What ran out of memory with fewer prompts at once, all else being equal, is not tried with more."""
    mine = _kind(as_dict(plan.config))
    for folder, record in records.read_all(plan.results_dir):
        row = record.row
        if row.status != "oom" or row.batch_size > plan.config.batch_size or row.device_name != plan.device_name:
            continue
        if row.model_hash not in (plan.source.identity, None):  # another one in a folder of the same name
            continue
        if _kind(records.read_config(folder)) != mine:
            continue
        for outcome in plan.outcomes:
            same = outcome.method.name == row.method and row.run_id != plan.run_id(outcome.method)
            if same and outcome.status == "ok":
                outcome.fail("skipped", f"dominated: memory ran out at batch size {row.batch_size} ({row.run_id})")


def _kind(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration less what does not raise or lower the memory that a batch of some size needs."""
    apart = [
        "batch_size",
        "method",
        "methods",
        "repeats",
        "warmup",
        "verify_batches",
        "generate_tokens",
        "sampler_interval_s",
        "results_dir",
        "rerun",
        "isolate",
        "timeout_s",
    ]
    return {key: value for key, value in config.items() if key not in apart}
