"""The cost model: seconds of a batch under each method, from the prompts' lengths and the model's shape alone.

A batch is reduced to its *work*: what it computes and moves, counted. Seconds are the work times what each kind of it
costs on this machine, fitted to a calibration (``calibrate.py``) by least squares on relative errors, no cost being
negative. All methods share the costs, since under the ``modern`` protocol they run the same code on other layouts.

Counted is what that protocol computes (``prefill/modern.py``). Telling what a machine will do needs no machine: numpy
and integers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.measure.estimate import Shape
from src.prefill.attention import calls_of
from src.prefill.methods import Method, Pack
from src.prefill.packing import Bins

Floats = NDArray[np.float64]
BASELINE = "full-batching"
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


@dataclass(frozen=True)
class Sample:
    """One batch, measured: ``group`` numbers the batch (its methods are left out together), ``seconds`` its time."""

    group: int
    method: str
    work: Floats
    seconds: float


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


@dataclass(frozen=True)
class CostModel:
    """Costs fitted to one machine, model and type.

    Attributes:
        costs: float64 [len(TERMS)], seconds per unit of each term.
        residuals: for each method, log(predicted / measured) of each calibration batch, predicted by the costs fitted
            to all other batches; the same order of batches for every method.
    """

    costs: Floats
    residuals: dict[str, Floats]

    def seconds(self, work: Floats) -> Floats:
        """Predicted seconds of batches whose work is [..., len(TERMS)]."""
        return work @ self.costs

    def spread(self, method: str) -> float:
        """Half of the 95 % interval of a method's log time: 0.1 is about ± 10 %."""
        return _half_interval(self._of(method))

    def speedup_spread(self, method: str) -> float:
        """The same of a method's log speedup over full-batching, in which errors in common cancel.

        They do on the same batches only: not for a method with batches of its own.
        """
        if method in LIKE:
            return float(np.hypot(self.spread(method), self.spread(BASELINE)))
        return _half_interval(self._of(method) - self._of(BASELINE))

    def knows(self, method: str) -> bool:
        """Whether the method is one that was calibrated, or like one."""
        return method in self.residuals or method in LIKE

    def _of(self, method: str) -> Floats:
        return self.residuals[LIKE.get(method, method)]


# Methods that lay out batches of their own, but carry them as another one does.
LIKE = {"length-ordered": BASELINE, "dataset-prepacking": "prepacking"}


def _half_interval(residuals: Floats) -> float:
    """Of a new draw, bias counted as error: root mean square times Student's 97.5 % quantile."""
    from scipy.stats import t

    return float(np.sqrt(np.mean(residuals**2)) * t.ppf(0.975, max(len(residuals) - 1, 1)))


def fit(samples: Sequence[Sample]) -> CostModel:
    """Costs from a calibration, and how well each of its batches is predicted by the costs fitted to the others.

    Raises:
        ValueError: fewer than three batches, or a batch that some method was not measured on.
    """
    work = np.array([sample.work for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    group = np.array([sample.group for sample in samples])
    method = np.array([sample.method for sample in samples])
    groups = np.unique(group)
    if len(groups) < 3:
        raise ValueError(f"a calibration of {len(groups)} batches; at least 3 are needed")
    errors = np.zeros(len(samples))
    for left_out in groups:
        own = group == left_out
        costs = _least_squares(work[~own], seconds[~own])
        errors[own] = np.log(work[own] @ costs / seconds[own])
    residuals = {}
    for name in np.unique(method):
        mine = np.flatnonzero(method == name)
        mine = mine[np.argsort(group[mine])]
        if not np.array_equal(group[mine], groups):
            raise ValueError(f"{name} was not measured once on every batch")
        residuals[str(name)] = errors[mine]
    return CostModel(_least_squares(work, seconds), residuals)


def _least_squares(work: Floats, seconds: Floats) -> Floats:
    """Costs >= 0 that minimise the sum of squared relative errors (non-negative least squares, Lawson and Hanson)."""
    from scipy.optimize import nnls

    relative = work / seconds[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)  # columns of like size; a term that never occurs costs nothing
    found: Callable[..., tuple[Floats, float]] = nnls
    return found(relative / scale, np.ones(len(seconds)))[0] / scale
