"""One batch, timed."""

from __future__ import annotations

import numpy as np

from ..prefilling.method import Prefilled
from ..prefilling.packing import Bins
from ..workload.batches import Batch
from .outcome import Outcome
from .plan import Plan
from .timer import PhaseTimer


def timed_batch(
    plan: Plan, outcome: Outcome, timer: PhaseTimer, batch: Batch, bins: Bins | None = None
) -> tuple[dict[str, int | None], dict[str, float], Prefilled | None]:
    """What one batch computed, the seconds of its phases, and its results.

    Args:
        batch: int64 [k], numbers of its prompts.
        bins: of the batch, where the whole dataset was packed beforehand.
    """
    engine = outcome.engine
    assert engine is not None
    c, prompts, token_ids = plan.config, plan.prompts, plan.token_ids(batch)
    # The authors time tokenization too; there is none where prompts are drawn from a length profile.
    timed_tokenizer = prompts.tokenizer if c.protocol == "paper" else None
    texts = [prompts.texts[index] for index in batch] if prompts.texts else []
    timer.start()
    if timed_tokenizer is not None:
        encoded = timed_tokenizer.encode(texts)
        most = c.dataset.max_tokens if c.sample == "own" else None  # theirs are cut as texts, before they are timed
        token_ids = [np.asarray(ids[:most], dtype=np.int64) for ids in encoded]
        timer.lap("tokenize")
    if "left-out-token" in plan.faults and outcome.method.packs and c.metric == "prefill":
        token_ids = [ids[:-1] if len(ids) > 1 else ids for ids in token_ids]
    done = engine.prefill(token_ids, timer, bins)
    phases = timer.stop()
    if done.measured_seconds is not None:
        phases, timer.host_seconds = {"forward": done.measured_seconds}, done.measured_seconds
    numbers = {
        "prompts": len(batch),
        "useful_tokens": sum(len(plan.prompts.token_ids[index]) for index in batch),
        "computed_tokens": done.computed_tokens,
        "rows": done.rows,
        "attention_pairs": done.attention_pairs,
    }
    return numbers, phases, done
