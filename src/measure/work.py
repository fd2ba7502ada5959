"""What a batch computes and moves, counted: useful work, and all that a method carries out, pads included.

Counted is what the protocols compute (``prefilling/modern.py``, ``prefilling/published.py``), from lengths and the
model's shape alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..prefilling.attention.kernels import pick_kernel
from ..prefilling.attention.segments import calls_of
from ..prefilling.method import Method, Pack
from ..prefilling.packing import Bins
from ..prefilling.shape import Shape
from .limit import least_operations
from .plan import Assignment, Plan

Floats = NDArray[np.float64]
TERMS = {
    "layers": "layers passed: what a batch costs whatever is in it",
    "prompts": "operations of what is computed once a prompt: the rest of the last layer, and its logits",
    "tokens": "operations of what is computed at every position, pads included: the linear layers",
    "pairs": "operations of attention over query-key pairs",
    "calls": "attention calls over all layers",
    "gathered": "bytes of queries, keys and values brought together for calls over like lengths",
    "zeroed": "bytes of the padded cache that packed keys and values go into (on a CPU its pads may cost nothing)",
    "scattered": "bytes of packed keys and values, which are read and written once more",
}


COMPUTED = [place for place, name in enumerate(TERMS) if name in {"prompts", "tokens", "pairs"}]  # in operations


def layout_of(method: Method, lengths: Sequence[int], pack: Pack, bins: Bins | None = None) -> tuple[int, int]:
    """Rows and width of a batch's forward: their product is its computed tokens.

    Args:
        lengths: tokens of each prompt of the batch.
        bins: its bins, where the whole dataset was packed beforehand.
    """
    if method.rows == "prompt":
        return len(lengths), max(lengths)
    if method.rows == "batch":
        return 1, sum(lengths)
    found = bins or pack(lengths, max(lengths))
    return len(found), max(sum(lengths[prompt] for prompt in bin_) for bin_ in found)


def work_of(
    shape: Shape, method: Method, lengths: Sequence[int], element_size: int, kernel: str, pack: Pack,
    bins: Bins | None = None,
) -> Floats:  # fmt: skip
    """The work of one batch, float64 [len(TERMS)], in the order and units of ``TERMS``.

    Args:
        lengths: tokens of each prompt of the batch.
        element_size: bytes of an activation.
        kernel: of attention: ``segments`` (calls over segments of like length) or ``varlen`` (one call).
        bins: as for ``layout_of``.
    """
    rows, width = layout_of(method, lengths, pack, bins)
    k, longest, computed = len(lengths), max(lengths), rows * width
    of_layer = shape.layer_parameters / shape.layers
    everywhere = shape.layer_parameters - of_layer + shape.kv_parameters  # weights that every position passes
    segments = list(lengths) if method.packs else [longest] * k
    groups = [segments] if kernel == "varlen" else [[segments[i] for i in group] for group in calls_of(segments)]
    # A call pads its segments to its longest; the variable-length kernel pads nothing.
    spans = np.asarray(segments if kernel == "varlen" else [max(group) for group in groups for _ in group], dtype=float)
    blocks = 2 * shape.window * spans if np.isfinite(shape.window) else np.inf
    pairs = np.where(spans > shape.window, blocks, spans * (spans + 1) / 2).sum()
    gathered = spans.sum() if method.packs and kernel != "varlen" else 0.0
    # A padded method's rows are its cache already, unless a sliding window asks for left padding.
    scatters = method.packs or np.isfinite(shape.window)
    zeroed, scattered = (k * longest, 2.0 * computed) if scatters else (0.0, 0.0)
    return np.array(
        [
            shape.layers,
            2.0 * k * (shape.vocabulary + of_layer - shape.kv_parameters),
            2.0 * computed * everywhere,
            4.0 * pairs * shape.attention,
            len(groups) * shape.layers,
            gathered * (shape.attention + shape.kv_width) * element_size,
            zeroed * shape.kv_width * element_size,
            scattered * shape.kv_width * element_size,
        ]
    )


def memory_bytes(
    shape: Shape, method: Method, lengths: Sequence[int], element_size: int, pack: Pack, bins: Bins | None = None,
    pads_are_held: bool = True,
) -> float:  # fmt: skip
    """Lower bound of the memory that a batch holds at once: weights, the KV cache, logits, activations.

    Args:
        pads_are_held: a cache that packed keys and values are scattered into holds its pads (on a CPU they are pages
            that are never written, and hold nothing).
    """
    rows, width = layout_of(method, lengths, pack, bins)
    hidden = shape.vocabulary / shape.vocab_size
    # Of one layer at a time: the residual, queries, keys and values, and what attention gives.
    activations = rows * width * (hidden + (2 * shape.attention + shape.kv_width) / shape.layers)
    # Whatever the layout, keys and values end in one row a prompt, as wide as the longest.
    kept = sum(lengths) if method.packs and not pads_are_held else len(lengths) * max(lengths)
    return shape.bytes(1, kept, len(lengths), element_size) + element_size * activations


def useful_operations(plan: Plan) -> float:
    """Floating-point operations of a pass that no method can do without (``limit.least_operations``)."""
    shape = Shape.of(plan.source.config)
    return sum(least_operations(shape, plan.prompts.lengths[batch]) for batch in plan.shuffled)


def computed_operations(plan: Plan, assignment: Assignment) -> float | None:
    """Floating-point operations that a method computes in a pass; None for methods with an engine of their own.

    Under ``paper`` every position goes through all layers and to logits, and a query is multiplied by every key of its
    row, seen or not; for the first token prepacking then computes one token of each prompt. Under ``modern`` it is what
    the cost model counts; the model's own forward computes the whole last layer as well.
    """
    if assignment.method.serves or assignment.method.engine:
        return None
    shape, c = Shape.of(plan.source.config), plan.config
    size, kernel = torch.empty((), dtype=plan.dtype).element_size(), pick_kernel(plan.device, plan.dtype)
    total = 0.0
    for number, (batch, (rows, width)) in enumerate(zip(assignment.batches, assignment.shapes, strict=True)):
        lengths = plan.prompts.lengths[batch].tolist()
        if c.protocol == "paper":
            total += shape.operations(rows, width, rows * width)
            if assignment.method.packs and c.metric == "ttft":
                total += sum(shape.operations(1, 1, 1) + 4.0 * (n - 1) * shape.attention for n in lengths)
            continue
        bins = assignment.bins[number] if assignment.bins else None
        work = work_of(shape, assignment.method, lengths, size, kernel, plan.pack, bins)
        total += float(work[COMPUTED].sum())
        if c.forward == "transformers":
            rows, width = layout_of(assignment.method, lengths, plan.pack, bins)
            rest_of_layer = shape.layer_parameters / shape.layers - shape.kv_parameters
            total += 2.0 * (rows * width - len(batch)) * rest_of_layer
    return total
