"""All records below a folder into one table, comparisons kept apart, speedups filled in where they can be."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray

from src.measure.records import Record, read_all
from src.measure.row import COLUMNS
from src.measure.summary import BASELINE, add_speedup
from src.prefill.methods import method_of

# Rows with equal values here measured the same thing by different methods.
SAME_COMPARISON = (
    "workload_fingerprint", "metric", "protocol", "model_detail", "batch_size", "num_prompts", "device_name", "dtype",
    "loadbit", "quirks", "memory_limit_mb",
)  # fmt: skip
METHOD_ORDER = (
    "prepacking", "padding-free", "dataset-prepacking", "full-batching", "length-ordered", "continuous-batching",
    "vllm",
)  # fmt: skip


def place_of(method: str) -> int:
    """Where a method stands among others: those that were added last."""
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)


def comparisons(results_dir: Path) -> list[list[Record]]:
    """The records below a folder, grouped by what was compared, the methods of a group in the authors' order.

    Methods that were measured in runs of their own are put beside each other too, and get a speedup where
    full-batching was measured on the very same workload; of two records of one method the newer one stands.
    """
    groups: dict[tuple[object, ...], dict[str, tuple[Path, Record]]] = defaultdict(dict)
    for path, record in read_all(results_dir):
        # A serving engine has a forward of its own, and stands beside the methods whatever theirs is.
        forward = record.row.forward or "fused"
        methods = groups[(*(getattr(record.row, name) for name in SAME_COMPARISON), forward)]
        key = record.row.method + (record.row.packing or "")
        if key not in methods or methods[key][1].row.created_at <= record.row.created_at:
            methods[key] = (path, record)
    result = []
    for methods in groups.values():
        _fill_speedups(methods)
        found = [record for _, record in methods.values()]
        result.append(sorted(found, key=lambda record: (place_of(record.row.method), record.row.packing or "")))
    return sorted(
        result,
        key=lambda group: [str(getattr(group[0].row, name)) for name in ("dataset", "model", *SAME_COMPARISON[1:])],
    )


def _fill_speedups(methods: dict[str, tuple[Path, Record]]) -> None:
    if BASELINE not in methods or methods[BASELINE][1].row.status != "ok":
        return
    base = read_seconds(methods[BASELINE][0])
    for path, record in methods.values():
        row = record.row
        if row.status == "ok" and row.speedup_over_full_batching is None:
            own = read_seconds(path)
            repeats = min(len(base), len(own))
            add_speedup(row, base[:repeats], own[:repeats], same_batches=not method_of(row.method).needs_dataset)


def read_seconds(folder: Path) -> NDArray[np.float64]:
    """Seconds of each sample of a record, [repeats, batches]."""
    samples = pandas.read_csv(folder / "samples.csv")
    return samples.pivot(index="repeat", columns="batch", values="seconds").to_numpy(dtype=np.float64)


def summary(groups: list[list[Record]]) -> pandas.DataFrame:
    """One line per record, in the columns of ``Row``."""
    return pandas.DataFrame([asdict(record.row) for group in groups for record in group], columns=list(COLUMNS))
