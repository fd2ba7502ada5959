"""What is not tried, because memory is sure to run out: it cannot fit, or a smaller batch of the same did not."""

from __future__ import annotations

import torch

from ..prefilling.attention.kernels import pick_kernel
from ..prefilling.layout import most_at_once
from ..prefilling.packing import Bins
from ..prefilling.shape import Shape
from ..records import store
from ..records.row import HOW, MACHINE, WORK, Row, key
from . import process
from .outcome import Outcome, Run
from .plan import Plan
from .rows import identity
from .work import ForwardSettings, memory_bytes

# What tells prompts apart while batches of other sizes are compared, whose fingerprints differ.
SAME_PROMPTS = ("dataset", "dataset_detail", "dataset_max_tokens", "seed")


def leave_out_what_cannot_fit(run: Run) -> None:
    """Refuse what is sure not to fit: on a CPU running out of memory kills the process, on a GPU trying takes time."""
    plan = run.plan
    on_gpu = plan.device.type == "cuda"
    available = _free_mb(*plan.devices) if on_gpu else process.available_mb()
    if available is None:
        return
    for outcome in run.outcomes:
        if on_gpu and (outcome.method.serves or outcome.method.engine):  # what they hold is their own choice
            continue
        needed = _least_bytes(plan, outcome) / 2**20
        if needed > available:
            outcome.fail("oom", f"its largest batch needs at least {needed:,.0f} MB, {available:,.0f} MB are available")


def _free_mb(*devices: torch.device) -> float:
    return sum(torch.cuda.mem_get_info(device)[0] for device in devices) / 2**20


def _least_bytes(plan: Plan, outcome: Outcome) -> float:
    """Lower bound of the memory that a method holds at once in its largest batch, in bytes.

    The kernel that was asked for may be missing, which is told later: the bound is the same with any.
    """
    shape, size = Shape.of(plan.source.config), plan.dtype.itemsize
    bits = {"none": 8 * size, "4": 4, "8": 8}[plan.config.loadbit]
    saved = shape.layer_parameters * max(0.0, size - bits / 8)  # by weights of fewer bits
    if plan.config.protocol == "paper":  # every row is as wide as the widest, with logits at all positions
        return max(shape.bytes(rows, width, rows * width, size) for rows, width in outcome.shapes) - saved
    lengths = [plan.prompts.lengths[batch].tolist() for batch in outcome.batches]
    if outcome.method.serves or outcome.method.engine:  # what an engine holds beside useful tokens is its own choice
        return max(shape.bytes(1, sum(each), len(each), size) for each in lengths) - saved
    most = most_at_once(plan.options.max_tokens, plan.device.type)
    settings = ForwardSettings(size, pick_kernel(plan.device, plan.dtype), plan.pack, most, plan.device.type != "cpu")
    bins: list[Bins] | list[None] = outcome.bins or [None] * len(outcome.batches)
    held = (memory_bytes(shape, outcome.method, each, settings, own) for each, own in zip(lengths, bins, strict=True))
    return max(held) - saved


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
    # Over which GPUs a model is split is known once it is loaded, which is what this is to save.
    size = ("batch_size", "workload_fingerprint", "split")
    if key(here, WORK, HOW, MACHINE, but=size) != key(there, WORK, HOW, MACHINE, but=size):
        return False
    return all(getattr(here, name) == getattr(there, name) for name in SAME_PROMPTS)
