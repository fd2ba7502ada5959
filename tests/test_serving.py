"""continuous-batching: what transformers' serving path gives, what it leaves alone, and how it ends."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, draw_prompts, tiny_model

from src.cli import UserError
from src.measure.timer import NoTimer, PhaseTimer
from src.prefilling.continuous_batching import ContinuousBatching, _twin

EDGES = {
    "one-token prompts": [1, 1, 1],
    "some one-token prompts": [1, 9, 1, 4],
    "one giant": [40, 2, 3, 1, 2],
    "a single token alone": [1],
    "longer than a page": [300, 3, 520, 256, 255],
}


@pytest.fixture
def serve() -> Any:
    """Start an engine; it is closed at the end, for its thread would keep the interpreter alive."""
    started = []

    def make(model: Any, *lengths: list[int], **options: Any) -> ContinuousBatching:
        started.append(ContinuousBatching(model, lengths, **options))
        return started[-1]

    yield make
    for engine in started:
        engine.close()


def alone(model: Any, prompt: np.ndarray) -> int:
    with torch.inference_mode():
        return int(model(torch.from_numpy(prompt)[None]).logits[0, -1].argmax())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_first_tokens_are_those_of_each_prompt_alone(serve: Any, family: str) -> None:
    model = tiny_model(family)
    engine = serve(model, *EDGES.values())
    for seed in (0, 1):
        for lengths in EDGES.values():
            prompts = draw_prompts(lengths, seed)
            done = engine.prefill(prompts, NoTimer())
            assert done.first_tokens == [alone(model, prompt) for prompt in prompts]
            assert done.computed_tokens == sum(lengths)


def test_its_time_is_planning_and_forward(serve: Any) -> None:
    model, timer = tiny_model(), PhaseTimer(torch.device("cpu"))
    engine = serve(model, [9, 4])
    timer.start()
    engine.prefill(draw_prompts([9, 4]), timer)
    assert set(timer.stop()) == {"plan", "forward"}
    assert "sdpa" in engine.attention


def test_the_model_of_the_other_methods_stays_as_it_is(serve: Any) -> None:
    model, prompt = tiny_model(), draw_prompts([12])
    before = model(torch.from_numpy(prompt[0])[None]).logits
    engine = serve(model, [12])
    for _ in range(2):
        engine.prefill(prompt, NoTimer())
        assert (model.config._attn_implementation, model.training) == ("sdpa", False)
        assert torch.equal(model(torch.from_numpy(prompt[0])[None]).logits, before)


def test_it_shares_every_weight_with_the_model() -> None:
    model = tiny_model()
    twin = _twin(model)
    twin.set_attn_implementation("eager")
    assert {id(w) for w in twin.parameters()} == {id(w) for w in model.parameters()}
    assert {id(b) for b in twin.buffers()} == {id(b) for b in model.buffers()}
    configs = {id(module.config) for module in twin.modules() if hasattr(module, "config")}
    assert not configs & {id(module.config) for module in model.modules() if hasattr(module, "config")}
    assert model.config._attn_implementation == "sdpa"


def test_its_cache_is_for_the_batches_and_not_for_the_machine(serve: Any) -> None:
    engine = serve(tiny_model(), [300, 3], [5])
    cache = engine._manager.batch_processor.cache
    assert 3 <= cache.num_blocks <= 8
    assert cache.max_batch_tokens == 303


def test_an_error_in_its_thread_comes_out_and_ends_it(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, threads = serve(tiny_model(), [4, 2]), threading.active_count()

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("kernel not found")

    monkeypatch.setattr(engine._manager.model, "forward", fail)
    with pytest.raises(RuntimeError, match="kernel not found"):
        engine.prefill(draw_prompts([4, 2]), NoTimer())
    assert threading.active_count() == threads - 1
    with pytest.raises(RuntimeError, match="closed"):
        engine.prefill(draw_prompts([4, 2]), NoTimer())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce] can't allocate memory")]
)
def test_memory_that_runs_out_in_its_thread_is_told_apart(
    serve: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = serve(tiny_model(), [4])

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(engine._manager.model, "forward", fail)
    with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
        engine.prefill(draw_prompts([4]), NoTimer())


def test_waiting_has_a_limit(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = serve(tiny_model(), [4], timeout_s=0.2)
    forward = engine._manager.model.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(engine._manager.model, "forward", slow)
    with pytest.raises(RuntimeError, match=r"no answer within 0\.2 s"):
        engine.prefill(draw_prompts([4]), NoTimer())


def test_closing_stops_its_thread_and_can_be_repeated() -> None:
    threads = threading.active_count()
    engine = ContinuousBatching(tiny_model(), [[3]])
    assert threading.active_count() == threads + 1
    engine.close()
    engine.close()
    assert threading.active_count() == threads


def test_what_the_library_refuses_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("not supported for this architecture")

    monkeypatch.setattr(type(model), "init_continuous_batching", refuse)
    with pytest.raises(UserError, match="not supported for this architecture"):
        ContinuousBatching(model, [[3]])
