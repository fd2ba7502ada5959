"""The published figures (arXiv 2404.09529), as results/paper/ has them."""

from __future__ import annotations

import csv
import functools

from .places import PAPER_FIGURES

GPU = "NVIDIA A6000"
DATASETS = ("mmlu", "wikitext512", "alpaca", "samsum", "rlhf", "wikitext256")  # in its order
CUT_AT = {"wikitext512": 512, "wikitext256": 256}  # tokens; prompts of the others are whole
LARGER_BATCHES = 16.0  # "up to": abstract
# Full-batching's peak memory over prepacking's, MMLU in batches of 64: where it lies for 90 % of samples of 1,000
# prompts, if float32 logits and KV of two batches are held at a time, as the authors' loop does (``keeps-last-batch``).
# Theirs, of one sample, is 7.56.
MEMORY_RATIO_SPREAD = (4.9, 8.1)


@functools.cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of ``results/paper/<name>.csv``."""
    with (PAPER_FIGURES / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def find(name: str, column: str, **where: object) -> float | None:
    """The figure in ``column`` of the row where all columns named equal what is given; None where there is none."""
    for row in table(name):
        if all(row[key] == str(value) for key, value in where.items()):
            return float(row[column])
    return None


def speedup(model: str, dataset: str, batch_size: int) -> float | None:
    """Prefill speedup of prepacking over full-batching."""
    return find(
        "speedup_by_batch_size", "speedup_full_over_prepacking", model=model, dataset=dataset, batch_size=batch_size
    )
