"""What could be hoped for: a dense forward over as many useful tokens, in prompts of equal length, without pad or mask.

By the model's own code or by the forward of the methods, whichever is faster with a kernel that there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from .attention.kernels import KERNELS
from .attention.spans import Spans
from .attention.within import within
from .cache import new_cache
from .method import Method, Prefilled, PrefillOptions, Timer, TokenIds
from .modern import Modern
from .packing import Bins
from .shape import windows_of


def equally_long(prompts: Sequence[TokenIds]) -> NDArray[np.int64]:
    """The tokens of k prompts as k of equal length, int64 [k, ceil(L / k)]; the last is filled up from the first."""
    useful = np.concatenate(prompts)
    return np.resize(useful, (len(prompts), -(-len(useful) // len(prompts))))


class Ideal:
    """The tokens of a batch as k prompts of ceil(L / k), logits at their last positions, by the model's own forward.

    Args:
        kernel: of attention: a backend of torch's, ``varlen`` for the variable-length kernel, None for torch's choice.
    """

    def __init__(self, model: PreTrainedModel, kernel: SDPBackend | str | None = None) -> None:
        self._model, self._kernel = model, kernel
        self.attention = f"no mask, {'SDPA' if kernel is None else kernel if isinstance(kernel, str) else kernel.name}"

    def close(self) -> None:
        """Nothing is held."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """One batch of equal prompts, as ``Engine.prefill`` says."""
        equal = equally_long(prompts)
        k, width = equal.shape
        rows = torch.from_numpy(equal)
        t.lap("plan")
        rows = rows.to(self._model.device)
        t.lap("transfer")
        cache = new_cache()
        with self._attention(k, width) as options:
            hidden = self._model.get_decoder()(
                input_ids=rows, past_key_values=cache, use_cache=True, **options
            ).last_hidden_state
        logits = self._model.get_output_embeddings()(hidden[:, -1])
        t.lap("forward")
        return Prefilled(cache, None, logits, None, rows.numel(), k)

    @contextlib.contextmanager
    def _attention(self, k: int, width: int) -> Iterator[dict[str, Any]]:
        """Pins the kernel, and gives what the decoder has to be called with for it."""
        if self._kernel is None:
            yield {}
        elif isinstance(self._kernel, str):
            spans = Spans(np.arange(k) * width, np.full(k, width), k, width, windows_of(self._model.config))
            with within(self._model):
                yield {"segments": KERNELS[self._kernel].plan(spans).to(self._model.device)}
        else:
            with sdpa_kernel(self._kernel):
                yield {}


class FusedIdeal(Modern):
    """The same by the fused forward, as the methods have it: one row a prompt, none of them padded."""

    def __init__(self, model: PreTrainedModel, options: PrefillOptions) -> None:
        super().__init__(model, Method("ideal", rows="prompt"), replace(options, metric="prefill", attention="auto"))
        self.attention = f"no mask, fused forward, {self._kernel.WORDS}"

    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """One batch of equal prompts, as ``Engine.prefill`` says."""
        return super().prefill(list(equally_long(prompts)), t)
