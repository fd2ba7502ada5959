"""What a comparison computes: operations of its useful tokens, and of all that a method carried out, pads included."""

from __future__ import annotations

import torch

from src.measure.cost import TERMS, layout_of, work_of
from src.measure.estimate import Shape
from src.measure.limit import least_operations
from src.measure.plan import Outcome, Plan
from src.prefill.attention import pick_kernel

COMPUTED = [place for place, name in enumerate(TERMS) if name in {"prompts", "tokens", "pairs"}]  # in operations


def useful_operations(plan: Plan) -> float:
    """Floating-point operations of a pass that no method can do without (``limit.least_operations``)."""
    shape = Shape.of(plan.source.config)
    return sum(least_operations(shape, plan.prompts.lengths[batch]) for batch in plan.shuffled)


def computed_operations(plan: Plan, outcome: Outcome) -> float | None:
    """Floating-point operations of a pass as a method carries it out; None where that is an engine of its own.

    Under ``paper`` every position goes through all layers and to logits, and a query is multiplied by every key of its
    row, seen or not; for the first token prepacking then computes one token of each prompt. Under ``modern`` it is what
    the cost model counts; the model's own forward computes the whole last layer as well.
    """
    if outcome.method.serves or outcome.method.engine:
        return None
    shape, c = Shape.of(plan.source.config), plan.config
    size, kernel = torch.empty((), dtype=plan.dtype).element_size(), pick_kernel(plan.device, plan.dtype)
    total = 0.0
    for number, (batch, (rows, width)) in enumerate(zip(outcome.batches, outcome.shapes, strict=True)):
        lengths = plan.prompts.lengths[batch].tolist()
        if c.protocol == "paper":
            total += shape.operations(rows, width, rows * width)
            if outcome.method.packs and c.metric == "ttft":
                total += sum(shape.operations(1, 1, 1) + 4.0 * (n - 1) * shape.attention for n in lengths)
            continue
        bins = outcome.bins[number] if outcome.bins else None
        work = work_of(shape, outcome.method, lengths, size, kernel, plan.pack, bins)
        total += float(work[COMPUTED].sum())
        if c.forward == "transformers":
            rows, width = layout_of(outcome.method, lengths, plan.pack, bins)
            rest_of_layer = shape.layer_parameters / shape.layers - shape.kv_parameters
            total += 2.0 * (rows * width - len(batch)) * rest_of_layer
    return total
