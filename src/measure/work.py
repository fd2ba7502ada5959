"""What a batch computes and moves, counted: useful work, and all that a method carries out, pads included.

Counted is what the protocols compute (``prefilling/modern.py``, ``prefilling/published.py``), from lengths, the
model's shape and how batches are laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..prefilling.attention.kernels import KERNELS, kernel_of
from ..prefilling.attention.spans import spans_of
from ..prefilling.layout import Part, most_at_once, parts_of, scatters
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


@dataclass(frozen=True)
class ForwardSettings:
    """How batches are computed under the ``modern`` protocol, whatever the method.

    Attributes:
        element_size: bytes of an activation.
        kernel: of attention, a name of ``KERNELS``.
        pack: how prompts are packed into bins.
        most: tokens that are computed at once; None: all of a batch.
        pads_are_held: a cache that packed keys and values are scattered into holds its pads. On a CPU they are pages
            that are never written, and hold nothing.
    """

    element_size: int
    kernel: str
    pack: Pack
    most: int | None = None
    pads_are_held: bool = True

    @classmethod
    def of(cls, plan: Plan, method: Method | None = None) -> ForwardSettings:
        """Those of a plan, and of a method that has a kernel of its own."""
        wanted = (method and method.attention) or plan.options.attention
        kernel = kernel_of(wanted, plan.device, plan.dtype).NAME
        most = most_at_once(plan.options.max_tokens, plan.device.type)
        return cls(plan.dtype.itemsize, kernel, plan.pack, most, plan.device.type != "cpu")

    def parts(self, method: Method, lengths: Sequence[int], bins: Bins | None = None) -> list[Part]:
        """What is computed at once of a batch of prompts of these lengths."""
        return parts_of(method, lengths, self.pack, self.most, bins)


def work_of(
    shape: Shape, method: Method, lengths: Sequence[int], settings: ForwardSettings, bins: Bins | None = None
) -> Floats:
    """The work of one batch, float64 [len(TERMS)], in the order and units of ``TERMS``.

    Args:
        lengths: tokens of each prompt of the batch.
        bins: its bins, where the whole dataset was packed beforehand.
    """
    parts = settings.parts(method, lengths, bins)
    k, computed = len(lengths), sum(part.computed_tokens for part in parts)
    spans = [spans_of(part, lengths, method.packs, (shape.window,)) for part in parts]
    attention = [KERNELS[settings.kernel].plan(each) for each in spans]
    zeroed, scattered = 0.0, 0.0
    if scatters(method, parts, shape.window is not None):
        zeroed, scattered = k * max(lengths), 2.0 * computed
    return np.array(
        [
            shape.layers * len(parts),
            2.0 * k * (shape.vocabulary + shape.rest_of_last_layer),
            2.0 * computed * (shape.layer_parameters - shape.rest_of_last_layer),
            4.0 * sum(made.pairs for made in attention) * shape.attention,
            sum(made.calls for made in attention) * shape.layers,
            sum(made.gathered for made in attention) * (shape.attention + shape.kv_width) * settings.element_size,
            zeroed * shape.kv_width * settings.element_size,
            scattered * shape.kv_width * settings.element_size,
        ]
    )


def memory_bytes(
    shape: Shape, method: Method, lengths: Sequence[int], settings: ForwardSettings, bins: Bins | None = None
) -> float:
    """Lower bound of the memory in bytes that a batch holds at once: weights, the KV cache, logits, activations.

    Args:
        lengths: tokens of each prompt of the batch.
        bins: its bins, where the whole dataset was packed beforehand.
    """
    parts = settings.parts(method, lengths, bins)
    hidden = shape.vocabulary / shape.vocab_size
    # Of one layer at a time: the residual, queries, keys and values, and what attention gives.
    of_token = hidden + (2 * shape.attention + shape.kv_width) / shape.layers
    activations = max(part.computed_tokens for part in parts) * of_token
    # Whatever the layout, keys and values end in one row a prompt, as wide as the longest.
    scattered = scatters(method, parts, shape.window is not None)
    kept = sum(lengths) if scattered and not settings.pads_are_held else len(lengths) * max(lengths)
    return shape.bytes(1, kept, len(lengths), settings.element_size) + settings.element_size * activations


def useful_operations(plan: Plan) -> float:
    """Floating-point operations of a pass that no method can do without (``limit.least_operations``)."""
    shape = Shape.of(plan.source.config)
    return sum(least_operations(shape, plan.prompts.lengths[batch]) for batch in plan.shuffled)


def computed_operations(plan: Plan, assignment: Assignment) -> float | None:
    """Floating-point operations that a method computes in a pass; None for methods with an engine of their own.

    Under ``paper`` every position goes through all layers and to logits, and a query is multiplied by every key of its
    row, seen or not; prepacking leaves each prompt's last token out, and for the first token computes it then. Under
    ``modern`` it is what the cost model counts; the model's own forward computes the whole last layer as well. What
    fills up a line to the size of a CUDA graph is not counted.
    """
    if assignment.method.serves or assignment.method.engine:
        return None
    shape, c, method = Shape.of(plan.source.config), plan.config, assignment.method
    settings = ForwardSettings.of(plan, method) if c.protocol == "modern" else None
    total = 0.0
    for number, (batch, (rows, width)) in enumerate(zip(assignment.batches, assignment.shapes, strict=True)):
        lengths = plan.prompts.lengths[batch].tolist()
        bins = assignment.bins[number] if assignment.bins else None
        if settings is None:
            if method.packs:
                bins = bins or plan.pack(lengths, max(lengths))
                width = max(sum(lengths[place] - 1 for place in bin_) for bin_ in bins)
            total += shape.operations(rows, width, rows * width)
            if method.packs and c.metric == "ttft":
                total += sum(shape.operations(1, 1, 1) + 4.0 * (n - 1) * shape.attention for n in lengths)
            continue
        total += float(work_of(shape, method, lengths, settings, bins)[COMPUTED].sum())
        if c.forward == "transformers":
            computed = sum(part.computed_tokens for part in settings.parts(method, lengths, bins))
            total += 2.0 * (computed - len(batch)) * shape.rest_of_last_layer
    return total
