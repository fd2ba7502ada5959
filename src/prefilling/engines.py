"""Which engine prefills the batches of a method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .authors import Authors
from .continuous_batching import ContinuousBatching
from .method import Engine, Method, PrefillOptions
from .modern import Modern
from .published import Published
from .vllm.driver import Vllm


def make_engine(model: PreTrainedModel, method: Method, options: PrefillOptions) -> Engine:
    """The engine of a method that is not a serving engine."""
    assert not method.serves
    if method.engine:
        return method.engine(model, options)
    if options.protocol == "modern":
        return Modern(model, method, options)
    return (Authors if options.numerics == "authors" else Published)(model, method, options)


def start_serving(
    model: PreTrainedModel, method: Method, batches: Sequence[Sequence[int]], as_they_come: bool = False
) -> Engine:
    """Start a serving engine that has room for its largest batch.

    Args:
        batches: lengths of the prompts of each batch that will be served, in tokens.
        as_they_come: prompts will be handed over one by one.

    Raises:
        vllm.driver.Missing, UserError: it cannot serve this model here.
        RuntimeError, MemoryError: it did not start.
    """
    if method.external:
        threads = torch.get_num_threads()
        return Vllm(model.config, model.dtype, model.device, batches, threads, asynchronous=as_they_come)
    return ContinuousBatching(model, batches)
