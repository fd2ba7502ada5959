"""Prompts in batches against each prompt alone: logits, first tokens and KV, in float32."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, draw_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from src.measure.timer import NoTimer
from src.measure.verify import verify
from src.prefill import methods
from src.prefill.cache import new_cache
from src.prefill.methods import METHODS, prefill_batch
from src.prefill.packing import PACKINGS, first_fit_decreasing

MODELS = {family: tiny_model(family) for family in FAMILIES}
EDGES = {
    "one-token prompts": [1, 1, 1],
    "some one-token prompts": [1, 9, 1, 4],
    "all equal": [7, 7, 7, 7],
    "one giant": [40, 2, 3, 1, 2],
    "a batch of one": [6],
    "a single token alone": [1],
    "uneven": [13, 5, 8, 2, 21, 3, 3, 11],
}


def alone(model: Any, prompt: np.ndarray) -> tuple[torch.Tensor, Any]:
    with torch.inference_mode():
        cache = new_cache()
        return model(torch.from_numpy(prompt)[None], past_key_values=cache).logits[0, -1], cache


def assert_as_alone(model: Any, lengths: list[int], method: str, protocol: str, packing: str = "ffd") -> None:
    prompts = draw_prompts(lengths, seed=len(lengths))
    done = prefill_batch(model, prompts, METHODS[method], protocol, "ttft", PACKINGS[packing], NoTimer())
    for number, prompt in enumerate(prompts):
        logits, cache = alone(model, prompt)
        assert torch.allclose(done.logits[number], logits, atol=2e-4, rtol=1e-4)
        assert done.first_tokens[number] == int(logits.argmax())
        for ours, theirs in zip(done.cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                have = getattr(ours, name)[number, :, -len(prompt) :]
                assert torch.allclose(have, getattr(theirs, name)[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("protocol", ["paper", "modern"])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("case", sorted(EDGES))
def test_each_method_gives_what_prompts_alone_give(case: str, family: str, method: str, protocol: str) -> None:
    assert_as_alone(MODELS[family], EDGES[case], method, protocol)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_any_packing_serves(packing: str) -> None:
    assert_as_alone(MODELS["llama"], EDGES["uneven"], "prepacking", "modern", packing)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10), family=st.sampled_from(sorted(FAMILIES)),
       protocol=st.sampled_from(["paper", "modern"]))  # fmt: skip
def test_prepacking_of_any_lengths(lengths: list[int], family: str, protocol: str) -> None:
    assert_as_alone(MODELS[family], lengths, "prepacking", protocol)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_generation_continues_from_the_unpacked_cache(family: str) -> None:
    model, prompts = MODELS[family], draw_prompts(EDGES["uneven"])
    done = prefill_batch(model, prompts, METHODS["prepacking"], "modern", "ttft", first_fit_decreasing, NoTimer())
    longest = max(map(len, prompts))
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * (len(p) + 1) for p in prompts])
    new = model.generate(
        input_ids=torch.tensor(done.first_tokens)[:, None], attention_mask=mask, past_key_values=done.cache,
        max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    for number, prompt in enumerate(prompts):
        ordinary = model.generate(
            torch.from_numpy(prompt)[None], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        assert new[number, -6:].tolist() == ordinary[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("method", "protocol", "metric"),
    itertools.product(sorted(METHODS), ["paper", "modern"], ["prefill", "ttft"]),
)
def test_phases_and_results_are_those_of_the_protocol(method: str, protocol: str, metric: str) -> None:
    laps: list[str] = []

    class Timer:
        def lap(self, phase: str) -> None:
            laps.append(phase)

    prompts = draw_prompts(EDGES["uneven"])
    done = prefill_batch(MODELS["llama"], prompts, METHODS[method], protocol, metric, first_fit_decreasing, Timer())
    packs, paper = method == "prepacking", protocol == "paper"
    unpacks = packs and (not paper or metric == "ttft")
    assert laps == ["plan", "transfer", "forward", *["unpack"] * unpacks, *["decode"] * (metric == "ttft")]
    assert (done.first_tokens is None) == (metric == "prefill")
    assert (done.logits is None) == (packs and paper and metric == "prefill")
    lengths = EDGES["uneven"]
    if not packs:
        assert done.computed_tokens == len(lengths) * max(lengths)
        assert done.rows == len(lengths)
    else:
        # The paper's prepacking leaves each last token out, and computes it in the decode step of TTFT.
        assert done.rows < len(lengths)
        assert done.computed_tokens < 1.5 * sum(lengths)


def test_logits_are_computed_everywhere_under_paper_and_at_last_tokens_under_modern(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = MODELS["llama"], []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    prompts = draw_prompts([5, 2, 3])
    for protocol in ("paper", "modern"):
        for method in ("full-batching", "prepacking"):
            prefill_batch(model, prompts, METHODS[method], protocol, "prefill", first_fit_decreasing, NoTimer())
    hook.remove()
    # Padded: 3 rows of 5. Packed: [5], [2, 3] less the last tokens is 2 rows of 4. Modern: 3 last tokens each.
    assert seen == [15, 8, 3, 3]


def break_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_only(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
        return torch.ones(len(segments), 1, segments.shape[1], segments.shape[1], dtype=torch.bool).tril()

    monkeypatch.setattr(methods, "independent_mask", causal_only)


def break_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = methods.packed

    def running_positions(prompts: Any, bins: Any) -> Any:
        layout = real(prompts, bins)
        layout.positions[:] = np.arange(layout.positions.shape[1])
        return layout

    monkeypatch.setattr(methods, "packed", running_positions)


def break_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    real = methods.unpack
    monkeypatch.setattr(methods, "unpack", lambda cache, row, start, length: real(cache, row, 0 * start, length))


@pytest.mark.parametrize("sabotage", [break_mask, break_positions, break_unpacking])
@pytest.mark.parametrize("protocol", ["paper", "modern"])
def test_verification_finds_what_is_wrong(sabotage: Any, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = MODELS["llama"], draw_prompts([9, 4, 3, 2, 8])
    arguments = (model, [batch], METHODS["prepacking"], protocol, first_fit_decreasing, "none")
    assert verify(*arguments).problem is None
    sabotage(monkeypatch)
    assert "differ from the prompt run alone" in verify(*arguments).problem


def test_verification_finds_a_wrong_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    real = methods.prefill_batch

    def shifted(*arguments: Any) -> Any:
        done = real(*arguments)
        done.first_tokens[1] = (done.first_tokens[1] + 1) % 200
        return done

    monkeypatch.setattr("src.measure.verify.prefill_batch", shifted)
    model, batch = MODELS["llama"], draw_prompts([9, 4])
    found = verify(model, [batch], METHODS["full-batching"], "modern", first_fit_decreasing, "none")
    assert "first token" in found.problem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_verification(dtype: torch.dtype) -> None:
    model = tiny_model("mistral", dtype, initializer_range=0.05)
    for method, protocol in itertools.product(METHODS.values(), ["paper", "modern"]):
        found = verify(model, [draw_prompts([9, 4, 1, 7])], method, protocol, first_fit_decreasing, "none")
        assert found.problem is None
        assert found.max_rel_diff < 0.05
