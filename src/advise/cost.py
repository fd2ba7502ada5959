"""The cost model: seconds of a batch under each method, from the prompts' lengths and the model's shape alone.

A batch is reduced to its *work*: what it computes and moves, counted. Seconds are the work times what each kind of it
costs on this machine, fitted to a calibration (``calibrate.py``) by least squares on relative errors, no cost being
negative. All methods share the costs, since under the ``modern`` protocol they run the same code on other layouts.

``measure/work.py`` counts it. Telling what a machine will do needs no machine: numpy and integers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..measure.work import Floats
from ..prefilling.methods import BASELINE


@dataclass(frozen=True)
class CalibrationBatch:
    """One batch, measured: ``group`` numbers the batch (its methods are left out together), ``seconds`` its time."""

    group: int
    method: str
    work: Floats
    seconds: float


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


# Methods that make batches of their own, but compute them as another method does.
LIKE = {"length-ordered": BASELINE, "dataset-prepacking": "prepacking"}


def _half_interval(residuals: Floats) -> float:
    """Of a new draw, bias counted as error: root mean square times Student's 97.5 % quantile."""
    from scipy.stats import t

    return float(np.sqrt(np.mean(residuals**2)) * t.ppf(0.975, max(len(residuals) - 1, 1)))


def fit(samples: Sequence[CalibrationBatch]) -> CostModel:
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
