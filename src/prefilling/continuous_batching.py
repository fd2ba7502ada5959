"""continuous-batching: transformers' own serving path, its paged cache and scheduler, kept warm between batches."""

from __future__ import annotations

import copy
import dataclasses
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from ..cli import UserError, ran_out_of_memory
from .method import Prefilled, Timer, TokenIds
from .packing import Bins

# What one forward may hold at most: the library's own default (5.23), above which its scheduler splits a batch.
MAX_BATCH_TOKENS = 8192
# The scheduler holds prompts back while less than this share of its pages is free: its default, 0.15, rounded up.
FREE_SHARE = 0.2


class ContinuousBatching:
    """A warm continuous-batching manager of transformers; ``prefill`` serves one batch, one new token per prompt.

    The manager runs in a thread of its own, on a copy of the model's modules that shares every weight: the attention
    implementation that it sets stays its own. Greedy, end-of-sequence ignored, no reuse of prefixes from one batch in
    the next; all else is the library's default, except that the paged cache holds what the largest batch needs and
    not most of the machine's memory.

    Whoever makes one must ``close`` it: its thread keeps the interpreter alive.

    Attributes:
        attention: the attention implementation that the library chose.
    """

    attention: str

    def __init__(self, model: PreTrainedModel, batches: Sequence[Sequence[int]], timeout_s: float = 600.0) -> None:
        """Set the serving path up and start its thread.

        Args:
            model: any attention implementation; it is left as it is.
            batches: lengths of the prompts of each batch that will be served, in tokens, at least one token each.
            timeout_s: seconds that one batch may take.

        Raises:
            UserError: the library does not serve this model on this device; the message gives its reason.
            torch.OutOfMemoryError, MemoryError, RuntimeError: the paged cache does not fit.
        """
        self._timeout_s = timeout_s
        self._manager: Any = None
        half_on_gpu = model.device.type == "cuda" and model.dtype in (torch.float16, torch.bfloat16)
        try:
            self._manager = _manager(model, batches, flash=half_on_gpu)
            self._manager.warmup()  # here, so that an error is raised here and not in the thread
        except Exception as error:  # ValueError, ImportError, RuntimeError, by what the model or machine lacks
            if ran_out_of_memory(error):
                raise
            problem = f"transformers' continuous batching does not take this model here ({_one_line(error)})"
            raise UserError("method", problem, "leave continuous-batching out") from None
        self.attention = str(self._manager.model.config._attn_implementation)
        self._manager.start()

    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """Serve one batch. ``plan`` is submitting it, ``forward`` waiting for all results; both overlap with computing.

        Args:
            prompts: int64 [length] each.

        Raises:
            RuntimeError: the serving thread failed, or the batch took longer than ``timeout_s``. The engine is closed.
            torch.OutOfMemoryError, MemoryError: memory ran out in the serving thread. The engine is closed.
        """
        if self._manager is None:
            raise RuntimeError("continuous batching is closed")
        deadline = time.perf_counter() + self._timeout_s
        requests = self._manager.add_requests([ids.tolist() for ids in prompts], max_new_tokens=1)
        t.lap("plan")
        try:
            tokens = self._wait(requests, deadline)
        except BaseException:
            self.close()
            raise
        t.lap("forward")
        first_tokens = [tokens[request] for request in requests]
        return Prefilled(None, None, None, first_tokens, sum(len(ids) for ids in prompts), 1)

    def serve(self, prompts: Sequence[TokenIds], arrivals_s: Sequence[float] | NDArray[np.float64]) -> list[float]:
        """Serve prompts as they come, handed over by a thread that sleeps until each is due, as ``Serving.serve`` says.

        Raises:
            RuntimeError, torch.OutOfMemoryError, MemoryError: as for ``prefill``, but for the whole of it.
        """
        if self._manager is None:
            raise RuntimeError("continuous batching is closed")
        manager, requests, found = self._manager, dict[str, int](), dict[int, float]()
        ids = [each.tolist() for each in prompts]
        began = time.perf_counter()

        def hand_over() -> None:
            for number, (prompt, at_s) in enumerate(zip(ids, arrivals_s, strict=True)):
                time.sleep(max(0.0, began + float(at_s) - time.perf_counter()))
                request = f"arrival {number}"
                requests[request] = number
                manager.add_request(prompt, request_id=request, max_new_tokens=1)

        thread = threading.Thread(target=hand_over, name="arrivals", daemon=True)
        thread.start()
        deadline = began + float(arrivals_s[-1]) + self._timeout_s
        try:
            while len(found) < len(ids):
                (request,) = self._wait(["any"], deadline)
                found[requests[request]] = time.perf_counter() - began
        except BaseException:
            self.close()
            raise
        thread.join()
        return [found[number] for number in range(len(ids))]

    def _wait(self, requests: Sequence[str], deadline: float) -> dict[str, int]:
        manager, tokens = self._manager, dict[str, int]()
        while len(tokens) < len(requests):
            result = manager.get_result(timeout=min(0.5, self._timeout_s))
            if result is not None and result.error is None:
                tokens[result.request_id] = int(result.generated_tokens[0])
                continue
            fatal = manager.background_thread_status.fatal_error
            if fatal is not None and ran_out_of_memory(fatal):
                raise fatal
            if result is not None or fatal is not None or not manager.is_running():
                reason = _one_line(fatal) if fatal is not None else result.error if result else "its thread ended"
                raise RuntimeError(f"continuous batching failed: {reason}") from fatal
            if time.perf_counter() > deadline:
                raise RuntimeError(f"continuous batching gave no answer within {self._timeout_s:g} s")
        return tokens

    def close(self) -> None:
        """Stop the thread and give the paged cache back. A second call does nothing."""
        manager, self._manager = self._manager, None
        if manager is not None and manager.is_running():
            manager.stop(block=True, timeout=60, hard_stop=True)
            manager.destroy()


def _manager(model: PreTrainedModel, batches: Sequence[Sequence[int]], flash: bool) -> Any:
    """The library's manager, not started, over a copy of ``model``; ``flash`` lets it switch to flash attention."""
    names = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    switches = "auto_switch_to_flash" in names  # later releases; before them ``paged|sdpa`` is what keeps sdpa
    config: Any = ContinuousBatchingConfig(allow_block_sharing=False)
    if switches:
        config.auto_switch_to_flash = flash
    page = int(config.page_size if "page_size" in names else config.block_size)  # tokens
    pages = max(sum(math.ceil((length + 1) / page) for length in lengths) for lengths in batches)
    config.num_blocks = math.ceil(pages / (1 - FREE_SHARE)) + 1
    config.max_batch_tokens = min(MAX_BATCH_TOKENS, max(sum(lengths) for lengths in batches))
    hints = WorkloadHints(
        max_prompt_length=max(max(lengths) for lengths in batches),
        max_generated_length=1,
        num_requests=max(len(lengths) for lengths in batches),
    )
    twin = _twin(model)
    twin.set_attn_implementation("sdpa" if switches or flash else "paged|sdpa")
    generation = GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1)
    try:
        return twin.init_continuous_batching(generation, config, hints)
    except (ImportError, OSError, ValueError, RuntimeError):
        if not flash:
            raise
        return _manager(model, batches, flash=False)  # its kernels cannot be downloaded, for instance


def _twin(model: PreTrainedModel) -> Any:
    """A copy of ``model`` with modules and a configuration of its own, which shares weights and buffers."""
    shared: dict[int, Any] = {}
    for module in model.modules():
        for value in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            # bitsandbytes keeps scales of quantized weights beside them, in objects of its own.
            if isinstance(value, torch.Tensor) or type(value).__module__.startswith("bitsandbytes"):
                shared[id(value)] = value
    return copy.deepcopy(model, shared)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
