"""Generation goes on from every method's cache as it does from each prompt alone, and what does not is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, draw_prompts, tiny_model

from src.measure import runner
from src.measure.verify import Verification, verify
from src.prefilling.engines import make_engine
from src.prefilling.method import PrefillOptions
from src.prefilling.methods import METHODS
from src.records.store import Record

MODELS = {family: tiny_model(family) for family in FAMILIES}
LOCAL = sorted(name for name, method in METHODS.items() if not method.serves)
LENGTHS, TOKENS = [13, 1, 8, 2, 17], 4


def check(
    family: str,
    change: Callable[[Any], Any] = lambda done: done,
    method: str = "prepacking",
    protocol: str = "modern",
    tokens: int = TOKENS,
    prompts: Any = None,
) -> Verification:
    """Verify a method whose prefill is changed by ``change``."""
    engine = make_engine(MODELS[family], METHODS[method], PrefillOptions(protocol=protocol))
    real = engine.prefill
    engine.prefill = lambda *arguments: change(real(*arguments))  # type: ignore[method-assign]
    return verify(MODELS[family], [(prompts or draw_prompts(LENGTHS), None)], engine, "none", tokens)


@pytest.mark.parametrize("protocol", ["paper", "modern"])
@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_methods_cache_goes_on_as_the_prompt_alone(family: str, method: str, protocol: str) -> None:
    found = check(family, method=method, protocol=protocol)
    assert (found.problem, found.near_ties) == (None, 0)
    assert (found.generated_tokens, found.generated_equal_pct) == (len(LENGTHS) * TOKENS, 100)


def test_a_token_with_the_number_of_the_padding_is_no_pad() -> None:
    prompts = draw_prompts(LENGTHS)
    for ids in prompts:
        ids[: len(ids) // 2] = 0
    found = check("llama", prompts=prompts)
    assert (found.problem, found.generated_equal_pct) == (None, 100)


def test_nothing_is_generated_unless_asked_for() -> None:
    found = check("llama", tokens=0)
    assert (found.problem, found.generated_tokens, found.generated_equal_pct) == (None, 0, None)


def last_tokens_swapped(done: Any) -> Any:
    for layer in done.cache.layers:
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        for kv in (layer.keys, layer.values):
            kv[:, :, -1] = kv[:, :, -1].roll(1, dims=0)  # each prompt's last token has its neighbour's
    return done


def swapped_prompts(done: Any) -> Any:
    for layer in done.cache.layers:
        layer.keys, layer.values = (kv[[2, 1, 0, 3, 4]] for kv in (layer.keys, layer.values))
    return done


def pads_seen(done: Any) -> Any:
    return replace(done, mask=torch.ones_like(done.mask))


def token_unseen(done: Any) -> Any:
    done.mask[0, -1] = 0
    return done


@pytest.mark.parametrize("change", [last_tokens_swapped, swapped_prompts])
def test_a_wrong_cache_gives_wrong_continuations(change: Callable[[Any], Any]) -> None:
    found = check("llama", change)
    assert "differ from the prompt run alone" in (found.problem or "")
    assert found.generated_equal_pct is not None
    assert found.generated_equal_pct < 100


@pytest.mark.parametrize(("change", "method"), [(pads_seen, "full-batching"), (token_unseen, "prepacking")])
def test_a_wrong_mask_beside_right_kv_is_found_by_generating_alone(change: Callable[[Any], Any], method: str) -> None:
    assert check("llama", change, method, tokens=0).problem is None
    found = check("llama", change, method)
    assert "goes on from its cache" in (found.problem or "")


def test_a_near_tie_ends_the_comparison_of_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.measure import verify as module

    monkeypatch.setitem(module.NEAR_TIE, torch.float32, 100.0)  # the model is undecided between any two
    found = check("llama", pads_seen, "full-batching")
    assert found.problem is None
    assert 0 < found.near_ties <= len(LENGTHS)
    assert found.generated_equal == len(LENGTHS) - found.near_ties
    assert found.generated_tokens < len(LENGTHS) * TOKENS


def test_neither_the_models_own_sampling_nor_its_stop_token_matter() -> None:
    model = MODELS["llama"]
    before = model.generation_config
    try:
        model.generation_config = type(before)(
            do_sample=True, temperature=9.0, repetition_penalty=5.0, eos_token_id=list(range(200))
        )
        found = check("llama")
    finally:
        model.generation_config = before
    assert (found.problem, found.generated_tokens) == (None, len(LENGTHS) * TOKENS)


def test_the_row_says_how_much_was_generated_and_a_wrong_method_is_not_timed(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.make_engine

    def make(model: Any, method: Any, options: Any) -> Any:
        engine = real(model, method, options)
        if method.name == "full-batching":
            prefill = engine.prefill
            engine.prefill = lambda *arguments: pads_seen(prefill(*arguments))  # type: ignore[method-assign]
        return engine

    monkeypatch.setattr(runner, "make_engine", make)
    settings = "generate_tokens=3", "verify_batches=1", "dataset.max_tokens=40", "repeats=1"
    right, wrong = (record.row for record in measure("methods=[prepacking,full-batching]", *settings))
    assert (right.status, right.generated_tokens, right.generated_equal_pct) == ("ok", 12, 100)
    assert (wrong.status, wrong.seconds_per_batch_mean) == ("incorrect", None)
    assert "goes on from its cache" in (wrong.status_reason or "")
    assert wrong.generated_equal_pct is not None
    assert wrong.generated_equal_pct < 100


def test_an_engine_that_keeps_its_cache_is_left_out(measure: Callable[..., list[Record]]) -> None:
    (record,) = measure("method=continuous-batching", "generate_tokens=3", "dataset.max_tokens=40", "repeats=1")
    assert (record.row.status, record.row.generated_tokens, record.row.generated_equal_pct) == ("ok", None, None)
