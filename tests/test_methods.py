"""Prompts in batches against each prompt alone: logits, first tokens and KV, in float32."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, carry, draw_prompts, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from src.measure import runner
from src.measure.verify import verify
from src.prefilling import modern, published
from src.prefilling.attention import segments as by_segment
from src.prefilling.attention.dense import independent_mask
from src.prefilling.attention.spans import Spans
from src.prefilling.cache import new_cache
from src.prefilling.engines import make_engine
from src.prefilling.layout import Layout
from src.prefilling.method import PrefillOptions, dataset_bins
from src.prefilling.methods import METHODS
from src.prefilling.packing import PACKINGS, first_fit_decreasing

MODELS = {family: tiny_model(family) for family in FAMILIES}
LOCAL = sorted(name for name, method in METHODS.items() if not method.serves)  # engines: test_serving, test_vllm
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


def assert_as_alone(model: Any, lengths: list[int], method: str, protocol: str, **options: Any) -> None:
    prompts = draw_prompts(lengths, seed=len(lengths))
    done = carry(model, prompts, method, protocol=protocol, **options)
    for number, prompt in enumerate(prompts):
        logits, cache = alone(model, prompt)
        assert torch.allclose(done.logits[number], logits, atol=2e-4, rtol=1e-4)
        assert done.first_tokens[number] == int(logits.argmax())
        for ours, theirs in zip(done.cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                have = getattr(ours, name)[number][:, done.mask[number].bool()][:, : len(prompt)]
                assert torch.allclose(have, getattr(theirs, name)[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("protocol", ["paper", "modern"])
@pytest.mark.parametrize("method", LOCAL)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("case", sorted(EDGES))
def test_each_method_gives_what_prompts_alone_give(case: str, family: str, method: str, protocol: str) -> None:
    assert_as_alone(MODELS[family], EDGES[case], method, protocol)


EAGER = {family: tiny_model(family, numerics="authors") for family in FAMILIES}


@pytest.mark.parametrize("method", ["full-batching", "prepacking", "dataset-prepacking"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("case", sorted(EDGES))
def test_the_authors_numerics_give_what_prompts_alone_give(case: str, family: str, method: str) -> None:
    assert_as_alone(EAGER[family], EDGES[case], method, "paper", numerics="authors")


@pytest.mark.parametrize("method", ["full-batching", "prepacking"])
@pytest.mark.parametrize("metric", ["prefill", "ttft"])
def test_the_authors_numerics_compute_the_same_positions_and_float32_logits(method: str, metric: str) -> None:
    prompts, model = draw_prompts(EDGES["uneven"]), tiny_model(dtype=torch.bfloat16, numerics="authors")
    theirs, ours = (
        carry(model, prompts, method, protocol="paper", metric=metric, numerics=numerics, keeps_logits=True)
        for numerics in ("authors", "own")
    )
    assert (theirs.computed_tokens, theirs.rows) == (ours.computed_tokens, ours.rows)
    assert (theirs.first_tokens is None) == (metric == "prefill")
    made = [each for each in (theirs.logits, theirs.every_logit) if each is not None]
    assert made
    assert {each.dtype for each in made} == {torch.float32}


def test_the_authors_mask_is_ours_as_numbers_to_add() -> None:
    prompts = draw_prompts(EDGES["uneven"])
    lengths = [len(ids) for ids in prompts]
    bins = first_fit_decreasing(lengths, max(lengths))
    layout = published.packed([ids[:-1] for ids in prompts], bins)
    for family in ("llama", "mistral"):  # without and with a sliding window
        engine = make_engine(EAGER[family], METHODS["prepacking"], PrefillOptions("ttft", "paper", numerics="authors"))
        added = engine._mask(layout, bins)
        segments = torch.from_numpy(layout.segments)
        seen = independent_mask(segments, getattr(EAGER[family].config, "sliding_window", None))
        real = (segments >= 0)[:, None, :, None]
        assert torch.equal((added == 0) & real, seen & real)
        assert added.dtype == torch.float32


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_any_packing_serves(packing: str) -> None:
    assert_as_alone(MODELS["llama"], EDGES["uneven"], "prepacking", "modern", pack=PACKINGS[packing])


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10), family=st.sampled_from(sorted(FAMILIES)),
       method=st.sampled_from(["prepacking", "padding-free", "full-batching"]),
       forward=st.sampled_from(["fused", "transformers"]), max_tokens=st.none() | st.integers(1, 60))  # fmt: skip
def test_any_lengths(lengths: list[int], family: str, method: str, forward: str, max_tokens: int | None) -> None:
    assert_as_alone(MODELS[family], lengths, method, "modern", forward=forward, max_tokens=max_tokens)


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10), family=st.sampled_from(sorted(FAMILIES)))
def test_prepacking_of_any_lengths_as_published(lengths: list[int], family: str) -> None:
    assert_as_alone(MODELS[family], lengths, "prepacking", "paper")


@pytest.mark.parametrize("method", ["prepacking", "padding-free", "full-batching"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_generation_continues_from_the_unpacked_cache(family: str, method: str) -> None:
    model, prompts = MODELS[family], draw_prompts(EDGES["uneven"])
    done = carry(model, prompts, method)
    mask = torch.cat([done.mask, done.mask.new_ones(len(prompts), 1)], dim=1)
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
    itertools.product(LOCAL, ["paper", "modern"], ["prefill", "ttft"]),
)
def test_phases_and_results_are_those_of_the_protocol(method: str, protocol: str, metric: str) -> None:
    laps: list[str] = []

    class Timer:
        def lap(self, phase: str) -> None:
            laps.append(phase)

    prompts = draw_prompts(EDGES["uneven"])
    done = carry(MODELS["llama"], prompts, method, Timer(), metric=metric, protocol=protocol)
    packs, paper = METHODS[method].packs, protocol == "paper"
    unpacking = ["unpack"] * (packs and metric == "ttft") if paper else ["unpack", "forward"] * (packs * 2)
    masks = ["transfer", *["mask"] * packs] if paper else ["mask", "transfer", "mask"]
    assert laps == ["plan", *masks, "forward", *unpacking, *["decode"] * (metric == "ttft")]
    assert (done.first_tokens is None) == (metric == "prefill")
    assert (done.logits is None) == (packs and paper and metric == "prefill")
    lengths = EDGES["uneven"]
    if not packs:
        assert done.computed_tokens == len(lengths) * max(lengths)
        assert done.rows == len(lengths)
    elif method == "padding-free" and not paper:
        assert (done.rows, done.computed_tokens) == (1, sum(lengths))
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
            carry(model, prompts, method, metric="prefill", protocol=protocol)
    hook.remove()
    # Padded: 3 rows of 5. Packed: [5], [2, 3] less the last tokens is 2 rows of 4. Modern: 3 last tokens each.
    assert seen == [15, 8, 3, 3]


def break_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal_only(segments: torch.Tensor, window: int | None = None) -> torch.Tensor:
        return torch.ones(len(segments), 1, segments.shape[1], segments.shape[1], dtype=torch.bool).tril()

    monkeypatch.setattr(published, "independent_mask", causal_only)
    real = by_segment.plan

    def whole_line(spans: Spans) -> Any:
        return real(Spans(np.array([0]), np.array([spans.tokens]), 1, spans.tokens, spans.windows))

    monkeypatch.setattr(by_segment, "plan", whole_line)


def break_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = modern.packed

    def running_positions(prompts: Any, bins: Any) -> Any:
        layout = real(prompts, bins)
        layout.positions[:] = np.arange(layout.positions.shape[1])
        return layout

    monkeypatch.setattr(published, "packed", running_positions)
    monkeypatch.setattr(modern, "packed", running_positions)


def break_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    real, place = published.unpack, Layout.places
    monkeypatch.setattr(
        published, "unpack", lambda cache, layout, device: real(cache, replace(layout, start=0 * layout.start), device)
    )
    monkeypatch.setattr(Layout, "places", lambda self, *rest: np.roll(place(self, *rest), 1))


@pytest.mark.parametrize("sabotage", [break_mask, break_positions, break_unpacking])
@pytest.mark.parametrize("protocol", ["paper", "modern"])
def test_verification_finds_what_is_wrong(sabotage: Any, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = MODELS["llama"], draw_prompts([9, 4, 3, 2, 8])
    engine = make_engine(model, METHODS["prepacking"], PrefillOptions(protocol=protocol, attention="segments"))
    assert verify(model, [(batch, None)], engine, "none").problem is None
    sabotage(monkeypatch)
    assert "differ from the prompt run alone" in verify(model, [(batch, None)], engine, "none").problem


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80))
def test_attention_calls_group_like_lengths_and_leave_nobody_out(lengths: list[int]) -> None:
    groups = by_segment.groups_of(lengths)
    assert sorted(member for group in groups for member in group) == list(range(len(lengths)))

    def cost(parts: list[list[int]]) -> int:
        return sum(by_segment.CALL_COSTS_PAIRS + len(p) * max(lengths[n] for n in p) ** 2 for p in parts)

    assert cost(groups) <= min(cost([list(range(len(lengths)))]), cost([[n] for n in range(len(lengths))]))
    calls = list(by_segment.calls_of(lengths))
    assert sorted(member for call in calls for member in call) == list(range(len(lengths)))
    assert all(len(call) == 1 or len(call) * lengths[call[-1]] <= by_segment.CALL_TOKENS for call in calls)
    assert all(lengths[call[-1]] == max(lengths[n] for n in call) for call in calls)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30), batch_size=st.integers(1, 5))
def test_dataset_bins_hold_each_prompt_once(lengths: list[int], batch_size: int) -> None:
    batches, bins = dataset_bins(np.array(lengths), batch_size, first_fit_decreasing)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch, places in zip(batches, bins, strict=True):
        assert len(places) <= batch_size
        assert sorted(place for bin_ in places for place in bin_) == list(range(len(batch)))
        assert max(sum(lengths[batch[place]] for place in bin_) for bin_ in places) <= max(lengths)


@pytest.mark.parametrize(("method", "forwards", "computed"), [
    ("padding-free", [15, 30, 20], 65),  # a prompt longer than the budget goes alone
    ("prepacking", [30, 30, 5], 65),  # bins {30}, {10, 10, 8, 2}, {5}: one a forward
    ("full-batching", [30] * 6, 180),  # rows stay as wide as the batch's longest prompt
])  # fmt: skip
def test_a_batch_of_more_tokens_than_the_budget_is_computed_by_parts(
    method: str, forwards: list[int], computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = modern.FusedForward.__call__

    def watched(self: Any, token_ids: torch.Tensor, *rest: Any) -> Any:
        seen.append(token_ids.numel())
        return real(self, token_ids, *rest)

    monkeypatch.setattr(modern.FusedForward, "__call__", watched)
    done = carry(MODELS["llama"], draw_prompts([10, 5, 30, 2, 8, 10]), method, max_tokens=20)
    assert seen == forwards
    assert done.computed_tokens == computed


def test_nothing_as_large_as_a_mask_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = by_segment.scaled_dot_product_attention

    def watched(q: Any, k: Any, v: Any, attn_mask: Any = None, **rest: Any) -> Any:
        seen.append(0 if attn_mask is None else attn_mask.numel())
        return real(q, k, v, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(by_segment, "scaled_dot_product_attention", watched)
    prompts = draw_prompts([60, 40, 3, 2])
    for family, window in (("llama", 0), ("mistral", FAMILIES["mistral"]["sliding_window"])):
        for forward in ("fused", "transformers"):
            carry(MODELS[family], prompts, "padding-free", forward=forward, attention="segments")
        assert max(seen) <= window * 2 * window
        seen.clear()


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["full-batching", "padding-free", "prepacking"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_method_is_verified_on_each_device(family: str, method: str, dtype: torch.dtype, device: str) -> None:
    model = tiny_model(family, dtype, initializer_range=0.05).to(device)
    engine = make_engine(model, METHODS[method], PrefillOptions())
    assert ("variable-length" in engine.attention) == (device == "cuda" and dtype == torch.bfloat16)
    assert verify(model, [(draw_prompts(EDGES["uneven"]), None)], engine, "none").problem is None


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("kernel", ["segments", "dense", "varlen", "flex"])
@pytest.mark.parametrize("method", ["full-batching", "prepacking", "padding-free"])
def test_each_attention_kernel_is_verified_on_a_gpu(method: str, kernel: str) -> None:
    model = tiny_model("llama", torch.bfloat16, initializer_range=0.05).to("cuda")
    engine = make_engine(model, METHODS[method], PrefillOptions(attention=kernel))
    assert verify(model, [(draw_prompts(EDGES["uneven"]), None)], engine, "none").problem is None


def test_verification_finds_a_wrong_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = MODELS["llama"], draw_prompts([9, 4])
    engine = make_engine(model, METHODS["full-batching"], PrefillOptions())
    real = engine.prefill

    def shifted(*arguments: Any) -> Any:
        done = real(*arguments)
        done.first_tokens[1] = (done.first_tokens[1] + 1) % 200
        return done

    monkeypatch.setattr(engine, "prefill", shifted)
    found = verify(model, [(batch, None)], engine, "none")
    assert "first token" in found.problem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_verification(dtype: torch.dtype) -> None:
    model = tiny_model("mistral", dtype, initializer_range=0.05)
    for method, protocol in itertools.product([METHODS[name] for name in LOCAL], ["paper", "modern"]):
        engine = make_engine(model, method, PrefillOptions(protocol=protocol))
        found = verify(model, [(draw_prompts([9, 4, 1, 7]), None)], engine, "none")
        assert found.problem is None
        assert found.max_rel_diff < 0.05


@pytest.mark.parametrize("method", ["prepacking", "padding-free", "full-batching"])
@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("model.layers.1.mlp.down_proj.weight", "logits, which follow layer 1, are not finite in the prompt run alone"),
        ("model.norm.weight", "logits, which follow layer 1, are not finite"),
        ("model.layers.0.mlp.up_proj.weight", "keys of layer 1 are not finite in the prompt run alone"),
        ("model.layers.0.self_attn.v_proj.weight", "values of layer 0 are not finite"),
    ],
)
def test_what_is_not_finite_is_wrong_though_every_token_is_the_same(method: str, where: str, named: str) -> None:
    """The largest of NaN is the same token for every method."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(where).fill_(float("nan"))
    engine = make_engine(model, METHODS[method], PrefillOptions())
    assert str(verify(model, [(draw_prompts([9, 4, 7]), None)], engine, "none").problem).startswith(named)


def test_an_overflow_of_half_precision_is_wrong() -> None:
    model = tiny_model(dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
    engine = make_engine(model, METHODS["prepacking"], PrefillOptions())
    assert "not finite" in str(verify(model, [(draw_prompts([9, 4, 7]), None)], engine, "none").problem)


def test_what_is_not_finite_makes_a_row_incorrect(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runner.load_model

    def load(*arguments: Any) -> Any:
        model = real(*arguments)
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        return model

    monkeypatch.setattr(runner, "load_model", load)
    for record in measure("methods=[prepacking,full-batching]"):
        assert (record.row.status, record.row.seconds_per_batch_mean) == ("incorrect", None)
        assert "not finite" in str(record.row.status_reason)
