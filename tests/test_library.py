"""The library: any supported model, prompts in, what each prompt alone gives out, and generation as ordinary."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES as LLAMA_LIKE
from conftest import ROOT, TINY, command, draw_prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.generation.streamers import BaseStreamer

from src import generate, prefill
from src.cli import UserError
from src.config import ModelConfig
from src.prefilling import library, supported
from src.prefilling.cache import new_cache
from src.prefilling.forward import FusedForward
from src.prefilling.loading import load_model
from src.prefilling.models import check_quantizable, check_served, find_model
from src.prefilling.shape import windows_of

# One checkpoint of each family, small; what the documentation says of its attention.
NEOX = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (TINY, "grouped queries"),
    "mistral": (LLAMA_LIKE["mistral"], "sliding window in every layer"),
    "qwen2": (
        TINY | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "biased; sliding window in some layers",
    ),
    "qwen3": (LLAMA_LIKE["qwen3"], "normed queries and keys"),
    "gemma": (TINY | {"head_dim": 8, "num_key_value_heads": 1}, "one key head; scaled embeddings"),
    "gemma3_text": (
        TINY | {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
        "sliding window in some layers, which have other rotary frequencies",
    ),
    "phi": (TINY, "rotary positions on half of each head; attention and MLP in parallel"),
    "phi3": (TINY | {"sliding_window": 5, "pad_token_id": 0}, "queries, keys and values in one; sliding window"),
    "gpt_neox": (NEOX, "rotary positions on a quarter of each head; attention and MLP in parallel"),
    "olmo2": (TINY, "norms behind attention and MLP; normed queries and keys"),
    "smollm3": (TINY | {"no_rope_layers": [1, 0], "pad_token_id": 0}, "some layers without positions"),
}
FULL, SLIDING = "full_attention", "sliding_attention"
EDGES = [[13, 5, 8, 2, 21, 3, 3, 11], [40, 2, 3, 1, 2], [1, 1, 1], [7, 7, 7], [6], [1]]
TOKENS = 6
DOCUMENT = ROOT / "docs" / "library.md"


def build(family: str, seed: int = 1, **changes: Any) -> Any:
    shape = {key: value for key, value in KINDS[family][0].items() if key != "model_type"}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **shape | {"bos_token_id": 1, "eos_token_id": 2} | changes)
    return AutoModelForCausalLM.from_config(config).float().eval()


MODELS = {family: build(family) for family in KINDS}


def alone(model: Any, prompt: np.ndarray) -> tuple[torch.Tensor, Any]:
    with torch.inference_mode():
        cache = new_cache()
        return model(torch.from_numpy(prompt)[None], past_key_values=cache).logits[0, -1], cache


def differences(model: Any, prompts: list[np.ndarray], done: Any) -> tuple[float, float]:
    """The largest difference of logits and of KV from each prompt alone, over the largest value of either."""
    of_logits, of_kv = 0.0, 0.0
    longest = max(map(len, prompts))
    assert done.attention_mask.tolist() == [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    assert len(done.logits) == len(prompts)
    for number, prompt in enumerate(prompts):
        logits, cache = alone(model, prompt)
        of_logits = max(of_logits, float((done.logits[number] - logits).abs().max() / logits.abs().max()))
        for ours, theirs in zip(done.cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                want = getattr(theirs, name)[0]
                have = getattr(ours, name)[number, :, longest - len(prompt) :]
                of_kv = max(of_kv, float((have - want).abs().max() / want.abs().max()))
    return of_logits, of_kv


def ordinary(model: Any, prompts: list[np.ndarray], pad: int = 0, **options: Any) -> Any:
    """What transformers does by itself: left padding and a mask."""
    longest = max(map(len, prompts))
    rows = torch.tensor([[pad] * (longest - len(ids)) + ids.tolist() for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    return model.generate(rows, attention_mask=mask, **options)


def some_tokenizer(folder: Path | None = None) -> Any:
    """Words into numbers; saved in the folder, if one is given."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", readme[readme.index("## In a program") :]))
    special = "[PAD]", "[BOS]", "[EOS]", "[UNK]", "abcdef"  # transformers tries stop strings behind the last of these
    more = (f"word{number}" for number in range(TINY["vocab_size"]))
    vocabulary = {word: number for number, word in enumerate([*special, *words, *more])}
    backend = Tokenizer(models.WordLevel(dict(list(vocabulary.items())[: TINY["vocab_size"]]), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]", padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    if folder:
        made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("stray", [
    {}, {"sliding_window": 3}, {"sliding_window": 3, "layer_types": [FULL, FULL]},
    {"sliding_window": 3, "layer_types": [SLIDING, FULL], "use_sliding_window": True},
])  # fmt: skip
@pytest.mark.parametrize("family", sorted(KINDS))
def test_windows_are_those_that_the_layers_attend_within(family: str, stray: dict[str, Any]) -> None:
    model = build(family, **stray)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        seen = model(torch.arange(20, 32)[None], output_attentions=True).attentions
    keys = {int((layer[0, :, -1] > 0).any(0).sum()) for layer in seen}  # of 12, by the last token
    assert keys == {min(window or 12, 12) for window in windows_of(model.config)}


@pytest.mark.parametrize("method", library.BATCH_METHODS)
@pytest.mark.parametrize("family", sorted(KINDS))
def test_prompts_in_a_batch_are_as_each_alone(family: str, method: str) -> None:
    for lengths in EDGES:
        prompts = draw_prompts(lengths, seed=len(lengths))
        done = prefill(MODELS[family], prompts, method)
        assert max(differences(MODELS[family], prompts, done)) < 1e-4


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), family=st.sampled_from(sorted(KINDS)),
       method=st.sampled_from(library.BATCH_METHODS), data=st.data())  # fmt: skip
def test_results_are_in_the_order_of_the_prompts(lengths: list[int], family: str, method: str, data: Any) -> None:
    prompts = draw_prompts(lengths)
    order = data.draw(st.permutations(range(len(prompts))))
    first = prefill(MODELS[family], prompts, method)
    second = prefill(MODELS[family], [prompts[number] for number in order], method)
    assert torch.allclose(second.logits, first.logits[order], atol=2e-4, rtol=1e-4)
    assert torch.equal(second.attention_mask, first.attention_mask[order])
    assert max(differences(MODELS[family], prompts, first)) < 1e-4


def test_packing_computes_fewer_positions_than_padding() -> None:
    prompts = draw_prompts(EDGES[0])
    packed, padded = (prefill(MODELS["llama"], prompts, name) for name in ("prepacking", "full-batching"))
    assert padded.computed_tokens == len(prompts) * 21
    assert packed.computed_tokens < 1.5 * sum(EDGES[0])


@pytest.mark.parametrize("family", sorted(KINDS))
def test_generation_is_ordinary_generation(family: str) -> None:
    for lengths in EDGES[:3]:
        prompts = draw_prompts(lengths, seed=len(lengths))
        options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        found = generate(MODELS[family], None, prompts, **options)
        assert torch.equal(found, ordinary(MODELS[family], prompts, **options))


OPTIONS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "penalties, which read the prompts": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    "many ends": {"eos_token_id": list(range(2, 150))},
    "length": {"max_length": 25, "max_new_tokens": None},
}


@pytest.mark.parametrize(("family", "lengths"), [("gpt_neox", EDGES[0]), ("mistral", EDGES[0]), ("mistral", [1, 1])])
@pytest.mark.parametrize("what", sorted(OPTIONS))
def test_generation_takes_what_transformers_takes(what: str, family: str, lengths: list[int]) -> None:
    prompts = draw_prompts(lengths)
    options = {"max_new_tokens": TOKENS, "pad_token_id": 0} | OPTIONS[what]
    torch.manual_seed(5)
    found = generate(MODELS[family], None, prompts, **options)
    torch.manual_seed(5)
    assert torch.equal(found, ordinary(MODELS[family], prompts, **options))


def test_the_models_own_generation_settings_and_the_output_object_are_kept() -> None:
    model, prompts = build("llama"), draw_prompts(EDGES[0])
    model.generation_config.update(num_return_sequences=2, do_sample=True, max_new_tokens=3, pad_token_id=7)
    runs = []
    for run in (lambda **kw: generate(model, None, prompts, **kw), lambda **kw: ordinary(model, prompts, 7, **kw)):
        torch.manual_seed(3)
        runs.append(run(return_dict_in_generate=True, output_scores=True))
    ours, theirs = runs
    assert ours.sequences.shape == (2 * len(prompts), 24)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(ours.scores, theirs.scores, strict=True))


def test_streaming_and_stop_strings() -> None:
    seen: list[Any] = []

    class Listener(BaseStreamer):
        def put(self, value: Any) -> None:
            seen.append(value)

        def end(self) -> None:
            seen.append("end")

    model, tokenizer, prompts = MODELS["llama"], some_tokenizer(), ["a model and its prompts", "the model"]
    options = {"max_new_tokens": 8, "do_sample": False}
    free = generate(model, tokenizer, prompts, streamer=Listener(), **options)
    assert torch.equal(torch.cat([seen[0], *(new[:, None] for new in seen[1:-1])], dim=1), free)
    assert seen[-1] == "end"
    word = tokenizer.decode(free[0, 7])
    one, ends = prompts[:1], {"stop_strings": [word], "tokenizer": tokenizer}
    stopped = generate(model, tokenizer, one, stop_strings=[word], **options)
    assert stopped.shape[1] < free.shape[1]
    assert torch.equal(stopped, ordinary(model, [np.array(tokenizer(one[0])["input_ids"])], **ends, **options))


def test_strings_are_encoded_by_the_tokenizer_and_may_stand_beside_token_ids() -> None:
    model, tokenizer = MODELS["llama"], some_tokenizer()
    texts = ["a model and its prompts", "the cache"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    want = prefill(model, ids).logits
    assert torch.equal(prefill(model, texts, tokenizer=tokenizer).logits, want)
    mixed = [torch.tensor(ids[0]), texts[1]]
    assert torch.equal(prefill(model, mixed, tokenizer=tokenizer).logits, want)
    assert torch.equal(prefill(model, [np.array(one, dtype=np.int32) for one in ids]).logits, want)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(implementation: str, fails: bool) -> None:
    model, prompts = build("qwen2"), draw_prompts(EDGES[0])
    model.set_attn_implementation(implementation)
    before = model.config.to_dict(), {name: (w.data_ptr(), w.clone()) for name, w in model.state_dict().items()}
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    want = ordinary(model, prompts, **options)
    if fails:

        def explode(*_: Any) -> None:
            raise RuntimeError("out of memory")

        hook = model.model.layers[1].register_forward_pre_hook(explode)
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(model, None, prompts)
        hook.remove()
    else:
        assert torch.equal(generate(model, None, prompts, **options), want)
    assert model.config._attn_implementation == implementation
    assert model.config.to_dict() == before[0]
    for name, weight in model.state_dict().items():
        assert weight.data_ptr() == before[1][name][0]
        assert torch.equal(weight, before[1][name][1])
    assert torch.equal(ordinary(model, prompts, **options), want)


@pytest.mark.parametrize("family", sorted(supported.FUSED_FAMILIES))
def test_the_fused_forward_gives_the_same(family: str) -> None:
    whole = {"layer_types": ["full_attention"] * 2} if family == "qwen2" else {}
    model, prompts = build(family, **whole), draw_prompts(EDGES[0])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    want = ordinary(model, prompts, **options)
    assert max(differences(model, prompts, prefill(model, prompts, forward="fused"))) < 1e-4
    assert torch.equal(generate(model, None, prompts, forward="fused", **options), want)


def load_other(model: Any) -> None:
    whole = {"layer_types": model.config.layer_types} if model.config.model_type == "qwen2" else {}
    model.load_state_dict(build(model.config.model_type, seed=5, **whole).state_dict())


def add_adapter(model: Any) -> None:
    """As an adapter does: a layer is wrapped by one that adds to what it gives."""

    class Adapter(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base, self.in_features = base, base.in_features
            self.more = torch.nn.Linear(base.in_features, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.more(x)

    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapter(layer.self_attn.q_proj)
        layer.mlp.down_proj = Adapter(layer.mlp.down_proj)


def train_in_place(model: Any) -> None:
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(1.5)
            layer.self_attn.v_proj.weight.add_(0.1)


def change_data(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight.data.mul_(-2.0)
        layer.mlp.gate_proj.weight.data = layer.mlp.gate_proj.weight.data.clone() + 0.1


def hook_a_layer(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda module, given, found: 2 * found)


def change_a_row_of_the_head(model: Any) -> None:
    """As those do who add a token to a vocabulary."""
    model.lm_head.weight.data[5] = 9.0


def replace_the_heads_forward(model: Any) -> None:
    old = model.lm_head.forward
    model.lm_head.forward = lambda x: 2 * old(x)


def hook_the_head(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, given, found: 2 * found)


CHANGES = [load_other, lambda model: model.bfloat16(), add_adapter, train_in_place, change_data, hook_a_layer,
           change_a_row_of_the_head, replace_the_heads_forward, hook_the_head,
           lambda model: model.resize_token_embeddings(300), lambda model: model.double().float()]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # qwen2 has biases
@pytest.mark.parametrize(
    "change",
    CHANGES,
    ids=[
        "state_dict",
        "bfloat16",
        "adapter",
        "in place",
        "data",
        "hook",
        "head",
        "head's forward",
        "head's hook",
        "resize",
        "cast",
    ],
)
def test_the_fused_forward_sees_that_weights_have_changed(change: Callable[[Any], Any], family: str) -> None:
    """It went on with the weights that it had joined, or laid out for oneDNN, at its first use."""
    whole = {"layer_types": ["full_attention"] * 2} if family == "qwen2" else {}
    model, prompts = build(family, **whole), draw_prompts(EDGES[0])
    before = prefill(model, prompts, forward="fused").logits
    change(model)
    found = prefill(model, prompts, forward="fused")
    want = prefill(model, prompts)
    near = 0.06 if model.dtype == torch.bfloat16 else 1e-4
    assert max(differences(model, prompts, found)) < near
    assert float((found.logits - want.logits).abs().max() / want.logits.abs().max()) < near
    same = change in CHANGES[-2:]
    assert same or not torch.allclose(before[:, :200].float(), found.logits[:, :200].float(), rtol=0.01)


def test_weights_that_stay_are_joined_once() -> None:
    model, prompts = build("llama"), draw_prompts(EDGES[0])
    prefill(model, prompts, forward="fused")
    made = FusedForward.of(model)
    prefill(model, prompts, forward="fused")
    generate(model, None, prompts, forward="fused", max_new_tokens=2)
    assert FusedForward.of(model) is made


def test_what_transformers_leaves_on_layers_is_no_hook() -> None:
    model, prompts = build("llama"), draw_prompts([5, 9, 2])
    want = prefill(model, prompts, forward="fused").logits
    model(torch.arange(4)[None], output_hidden_states=True, output_attentions=True)
    assert any(len(module._forward_hooks) for module in model.modules())
    assert torch.equal(prefill(model, prompts, forward="fused").logits, want)


def test_hooks_that_fused_would_pass_over_are_refused() -> None:
    model = build("llama")
    model.model.layers[1].register_forward_hook(lambda module, given, found: None)
    assert len(prefill(model, [[5]]).logits) == 1
    with pytest.raises(ValueError, match=r"model: layers\.1 has hooks, which the fused forward passes over"):
        prefill(model, [[5]], forward="fused")


class WindowedConfig(MistralConfig):
    """A configuration that names its window in its base class alone."""

    def __init__(self, extra: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.extra = extra


def of_subclassed_config() -> Any:
    torch.manual_seed(1)
    shape = {key: value for key, value in KINDS["mistral"][0].items() if key != "model_type"}
    return MistralForCausalLM(WindowedConfig(**shape)).eval()


def with_a_layer_less() -> Any:
    model = build("llama")
    model.model.layers = model.model.layers[:1]
    return model


def of_fewer_layers_in_its_configuration() -> Any:
    model = build("llama")
    model.config.num_hidden_layers = 1
    return model


def that_returns_tuples() -> Any:
    model = build("llama")
    model.config.return_dict = False
    return model


@pytest.mark.parametrize("forward", ["transformers", "fused"])
@pytest.mark.parametrize(
    "make", [of_subclassed_config, with_a_layer_less, of_fewer_layers_in_its_configuration, that_returns_tuples]
)
def test_an_unusual_model_is_as_its_own_code_has_it(make: Callable[[], Any], forward: str) -> None:
    model, prompts = make(), draw_prompts(EDGES[0])
    done = prefill(model, prompts, forward=forward)
    model.config.return_dict = True
    assert max(differences(model, prompts, done)) < 1e-4


def test_a_stray_field_that_the_family_does_not_know_changes_nothing() -> None:
    model, prompts = build("gpt_neox", num_key_value_heads=2), draw_prompts(EDGES[0])
    assert max(differences(model, prompts, prefill(model, prompts))) < 1e-4


class Doubled(torch.nn.Embedding):
    """An embedding that does more than look up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(ids)


def of_other_parts(name: str) -> Any:
    model = build("llama")
    first = model.model.layers[0]
    if name == "embed_tokens":
        model.model.embed_tokens = Doubled(TINY["vocab_size"], TINY["hidden_size"])
    elif name == "layers.0.self_attn":
        first.self_attn.scaling = 0.05
    elif name == "layers.0.mlp.act_fn":
        first.mlp.act_fn = torch.nn.GELU()
    elif name == "norm":
        model.model.norm = torch.nn.LayerNorm(TINY["hidden_size"])
    elif name == "layers.0.input_layernorm":
        first.input_layernorm.forward = torch.nn.Identity().forward
    return model


@pytest.mark.parametrize(
    "name", ["embed_tokens", "layers.0.self_attn", "layers.0.mlp.act_fn", "norm", "layers.0.input_layernorm"]
)
def test_fused_refuses_a_part_that_was_altered_and_the_models_own_code_has_it(name: str) -> None:
    model, prompts = of_other_parts(name), draw_prompts(EDGES[0])
    with pytest.raises(ValueError, match=rf"^model: {re.escape(name)} is not as its family has it; use forward='tr"):
        prefill(model, prompts, forward="fused")
    assert max(differences(model, prompts, prefill(model, prompts))) < 1e-4


class Scaled(LlamaForCausalLM):
    """A model that does something behind its output layer."""

    @functools.wraps(LlamaForCausalLM.forward)  # with its signature, by which generate knows that it takes positions
    def forward(self, *arguments: Any, **named: Any) -> Any:
        found = super().forward(*arguments, **named)
        found.logits = -found.logits
        return found


def that_is(how: str) -> Any:
    torch.manual_seed(1)
    shape = {key: value for key, value in TINY.items() if key != "model_type"}
    config = AutoConfig.for_model("llama", **shape | {"bos_token_id": 1, "eos_token_id": 2})
    model = (Scaled if how == "a subclass" else LlamaForCausalLM)(config).eval()
    if how == "patched":
        model.forward = Scaled.forward.__get__(Scaled(config).eval())
    elif how == "hooked":
        model.register_forward_hook(lambda *given: type(given[-1])(**{**given[-1], "logits": -given[-1].logits}))
    return model


@pytest.mark.parametrize(("how", "has"), [("a subclass", "a forward of its own"), ("patched", "a forward of its own"),
                                          ("hooked", "hooks on the model as a whole")])  # fmt: skip
def test_what_a_model_does_behind_its_output_layer_is_refused_but_for_generation(how: str, has: str) -> None:
    model, prompts = that_is(how), draw_prompts([7, 4])
    with pytest.raises(ValueError, match=f"^model: it has {has}, which prefill, .*; apply it to the logits"):
        prefill(model, prompts)
    if how != "patched":  # whose own code is another model's
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(generate(model, None, prompts, **options), ordinary(model, prompts, **options))


def test_generation_by_a_model_that_would_be_given_no_positions_is_refused() -> None:
    model = build("llama")
    own = model.forward
    model.forward = lambda *arguments, **named: own(*arguments, **named)
    with pytest.raises(ValueError, match=r"^model: its forward does not name position_ids"):
        generate(model, None, draw_prompts([7, 4]), max_new_tokens=2)


def test_windows_that_masks_and_layers_take_differently_are_refused() -> None:
    # Transformers makes masks by layer_types, and gives layers no window where use_sliding_window is false.
    model = build("smollm3", layer_types=[SLIDING, FULL], sliding_window=4, use_sliding_window=False)
    with pytest.raises(
        ValueError, match=f"^model: layer 0 attends with no sliding window, where layer_types says {SLIDING}"
    ):
        prefill(model, draw_prompts([9, 4]))
    kept = build("smollm3", layer_types=[SLIDING, FULL], sliding_window=4, use_sliding_window=True)
    prompts = draw_prompts(EDGES[0])
    assert max(differences(kept, prompts, prefill(kept, prompts))) < 1e-4


@pytest.mark.parametrize("forward", ["transformers", "fused"])
def test_autocast_changes_nothing(forward: str) -> None:
    model, prompts = build("llama"), draw_prompts(EDGES[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        done = prefill(model, prompts, forward=forward)
        new = generate(model, None, prompts, forward=forward, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert done.logits.dtype == done.cache.layers[0].keys.dtype == torch.float32
    assert max(differences(model, prompts, done)) < 1e-4
    assert new.shape == (len(prompts), max(map(len, prompts)) + 2)


def test_a_batch_is_continued_by_hand_with_its_positions() -> None:
    model, prompts = build("llama", eos_token_id=None), draw_prompts(EDGES[0])
    done, tokens = prefill(model, prompts), []
    mask, positions, token = done.attention_mask, done.position_ids, done.logits.argmax(-1, keepdim=True)
    assert positions.tolist() == [[len(prompt)] for prompt in prompts]
    with torch.inference_mode():
        for _ in range(4):
            tokens.append(token)
            mask = torch.cat([mask, torch.ones_like(token)], dim=-1)
            given = {"attention_mask": mask, "position_ids": positions, "past_key_values": done.cache}
            token, positions = model(token, **given).logits[:, -1].argmax(-1, keepdim=True), positions + 1
    want = ordinary(model, prompts, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(torch.cat(tokens, dim=-1), want[:, -4:])


def test_what_wraps_a_model_is_told_how_to_come_by_it() -> None:
    model, prompts = build("llama"), draw_prompts(EDGES[0])

    class PeftModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.base = model.config, model

        def get_base_model(self) -> Any:
            return self.base

    wrapped = PeftModel().eval()
    with pytest.raises(
        ValueError, match=r"PeftModel is not transformers' LlamaForCausalLM; give model\.get_base_model"
    ):
        prefill(wrapped, prompts)  # type: ignore[arg-type]
    assert max(differences(model, prompts, prefill(wrapped.get_base_model(), prompts))) < 1e-4
    with pytest.raises(ValueError, match=r"OptimizedModule is not .*; compile in place, with model\.compile\(\)"):
        prefill(torch.compile(model), prompts)  # type: ignore[arg-type]
    model.compile(backend="eager")
    assert max(differences(model, prompts, prefill(model, prompts))) < 1e-4


def test_four_bit_weights_of_a_width_that_blocks_do_not_fill_are_refused() -> None:
    shape = harness_shape(hidden_size=64, intermediate_size=128, head_dim=24)
    model = load_model(shape, torch.device("cpu"), torch.float32, "4", 0)
    with pytest.raises(ValueError, match=r"o_proj has 4-bit weights of 96 inputs, which is no multiple of 64"):
        prefill(model, [[5]])
    with pytest.raises(UserError, match=r"loadbit: .* this model's num_attention_heads \* head_dim is 96"):
        check_quantizable(shape, "4", torch.device("cpu"))
    assert prefill(load_model(shape, torch.device("cpu"), torch.float32, "8", 0), [[5]]).computed_tokens == 1


def harness_shape(**changes: Any) -> Any:
    return find_model(ModelConfig("tiny", weights="random", architecture=TINY | changes))


@pytest.mark.parametrize(
    ("changes", "forward", "said"),
    [
        ({"hidden_act": "gelu"}, "fused", "forward: fused does not serve a llama with hidden_act=gelu"),
        ({"hidden_act": "gelu"}, "transformers", None),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "transformers",
         "model.path: rotary positions of type dynamic depend on a batch's longest prompt"),
        ({}, "fused", None),
    ],
)  # fmt: skip
def test_the_harness_knows_what_the_library_knows(changes: dict[str, Any], forward: str, said: str | None) -> None:
    """It measured such models and called them incorrect, which they are not."""
    if said is None:
        return check_served(harness_shape(**changes), forward)
    with pytest.raises(UserError, match=re.escape(said)):
        check_served(harness_shape(**changes), forward)
    return None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    for family in ("gemma", "gpt_neox"):
        model = build(family, initializer_range=0.05).to(dtype)
        prompts = draw_prompts(EDGES[0])
        assert max(differences(model, prompts, prefill(model, prompts))) < 0.06
        assert len(generate(model, None, prompts, max_new_tokens=2)) == len(prompts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
@pytest.mark.parametrize("family", sorted(KINDS))
def test_each_family_on_a_gpu(family: str) -> None:
    prompts = draw_prompts(EDGES[0])
    model = build(family, initializer_range=0.05).cuda()
    options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    longest = max(map(len, prompts))
    ids = [torch.from_numpy(one).cuda() for one in prompts]
    found = generate(model, None, ids, **options)
    assert found.shape == (len(prompts), longest + TOKENS)
    for row, one in zip(found, ids, strict=True):
        lone = model.generate(one[None], attention_mask=torch.ones_like(one[None]), **options)[0]
        assert torch.equal(row[longest - len(one) :], lone)
    want = prefill(model, ids).logits
    half = prefill(model.bfloat16(), ids).logits  # the variable-length kernel
    assert float((half.float() - want).abs().max() / want.abs().max()) < 0.06


MISUSES: list[tuple[Callable[[], Any], str]] = [
    (lambda: prefill(MODELS["llama"], []), "prompts: the list is empty"),
    (lambda: prefill(MODELS["llama"], [[5], []]), "prompts: prompt 1 is empty"),
    (lambda: prefill(MODELS["llama"], [""], tokenizer=some_tokenizer()), "prompts: prompt 0 is empty"),
    (lambda: prefill(MODELS["llama"], ["some words"]), "prompts: strings need tokenizer="),
    (lambda: generate(MODELS["llama"], None, ["some words"]), "prompts: strings need tokenizer="),
    (lambda: prefill(MODELS["llama"], "some words"), "prompts: one string"),
    (lambda: prefill(MODELS["llama"], torch.ones(2, 3)), "prompts: a padded Tensor"),  # type: ignore[arg-type]
    (lambda: prefill(MODELS["llama"], some_tokenizer()(["a"])), "prompts: a padded BatchEncoding"),
    (lambda: prefill(MODELS["llama"], [[5, 211]]), "prompts: prompt 0 holds token ids outside of 0 to 210"),
    (lambda: prefill(MODELS["llama"], [[5], [-1]]), "prompts: prompt 1 holds token ids outside of 0 to 210"),
    (lambda: prefill(MODELS["llama"], [[0.5]]), "prompts: prompt 0 is no list of token ids"),  # type: ignore[list-item]
    (lambda: prefill(MODELS["llama"], [[[5]]]), "prompts: prompt 0 is no list of token ids"),  # type: ignore[list-item]
    (lambda: prefill(MODELS["llama"], [5]), "prompts: prompt 0 is no list of token ids"),  # type: ignore[list-item]
    (lambda: prefill(MODELS["llama"], [[5]], "length-ordered"), "method: unknown 'length-ordered'; choose one of"),
    (lambda: prefill(MODELS["llama"], [[5]], forward="fast"), "forward: unknown 'fast'; choose one of transformers"),
    (lambda: prefill(MODELS["gemma"], [[5]], forward="fused"), "forward: fused does not serve this gemma"),
    (lambda: prefill(build("llama", hidden_act="gelu"), [[5]], forward="fused"),
     "forward: fused does not serve a llama with hidden_act=gelu"),
    (lambda: prefill(MODELS["qwen2"], [[5]], forward="fused"), "forward: fused does not serve a qwen2 with layers of"),
    (lambda: prefill(build("llama").train(), [[5]]), "model: it is in training mode; call model.eval"),
    (lambda: prefill(AutoModel.from_config(MODELS["llama"].config).eval(), [[5]]), "model: LlamaModel is not transf"),
    (lambda: prefill("gpt2", [[5]]), "model: the architecture 'str' is not supported"),  # type: ignore[arg-type]
    (lambda: prefill(build("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), [[5]]),
     "model: rotary positions of type dynamic depend on a batch's longest"),
    (lambda: prefill(build("gemma", use_bidirectional_attention=True), [[5]]), "model: use_bidirectional_attention=Tr"),
    (lambda: prefill(build("gemma3_text", final_logit_softcapping=30.0), [[5]]), "model: final_logit_softcapping=30.0"),
    (lambda: generate(MODELS["llama"], None, [[5]], input_ids=[[5]]), "input_ids: it is made from the prompts"),
    (lambda: generate(MODELS["llama"], None, [[5]], use_cache=False), "use_cache: False would have the prompts"),
    (lambda: generate(MODELS["llama"], None, [[5]], cache_implementation="static"), "cache_implementation: it cannot"),
    (lambda: generate(MODELS["llama"], None, [[5]], prefill_chunk_size=4), "prefill_chunk_size: it cannot go on from"),
    (lambda: generate(MODELS["llama"], None, [[5]], token_healing=True), "token_healing: it cannot go on from a cache"),
]  # fmt: skip


@pytest.mark.parametrize(("use", "message"), MISUSES, ids=[message for _, message in MISUSES])
def test_misuse_is_a_value_error_that_says_what_would_be_right(use: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        use()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "family", ["gpt2", "opt", "bloom", "mpt", "falcon", "mamba", "rwkv", "gemma2", "cohere", "granite", "bert"]
)
def test_other_architectures_are_refused(family: str) -> None:
    layers = {"gpt2": "n_layer", "bloom": "n_layer", "mpt": "n_layers"}.get(family, "num_hidden_layers")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{layers: 1})).eval()
    for use in (prefill, lambda model, prompts: generate(model, None, prompts)):
        with pytest.raises(ValueError, match=f"model: the architecture '{family}' is not supported; use one of llama,"):
            use(model, [[5]])


def test_an_encoder_decoder_and_a_stranger_that_calls_itself_llama_are_refused() -> None:
    with pytest.raises(ValueError, match="the architecture 't5' is not supported"):
        prefill(SimpleNamespace(config=AutoConfig.for_model("t5")), [[5]])  # type: ignore[arg-type]

    class OwnLlama(LlamaForCausalLM):
        """A change of one's own keeps transformers' class beneath."""

    own = OwnLlama(MODELS["llama"].config).eval()
    assert prefill(own, [[5, 6]]).logits.shape == (1, TINY["vocab_size"])
    stranger = type("LlamaForCausalLM", (torch.nn.Module,), {"config": own.config})().eval()
    with pytest.raises(ValueError, match="is not transformers' LlamaForCausalLM"):
        prefill(stranger, [[5]])


def test_weights_in_several_places_are_refused() -> None:
    model = build("llama")
    model.model.layers[1].to("meta")
    with pytest.raises(ValueError, match="model: its weights are on cpu and meta; load all of them on one device"):
        prefill(model, [[5]])


def test_the_families_that_are_documented_are_those_that_are_compared() -> None:
    """docs/library.md has a row for each, whose bounds hold."""
    assert set(KINDS) == set(supported.FAMILIES)
    measured = {}
    for family, model in MODELS.items():
        found = [0.0, 0.0]
        for lengths in EDGES:
            prompts = draw_prompts(lengths, seed=len(lengths))
            found = [
                max(pair) for pair in zip(found, differences(model, prompts, prefill(model, prompts)), strict=True)
            ]
        measured[family] = found

    def row(family: str, bounds: list[str]) -> str:
        fused = "yes" if family in supported.FUSED_FAMILIES else ""
        return " | ".join([f"| `{family}`", f"`{supported.FAMILIES[family]}`", KINDS[family][1], fused, *bounds]) + " |"

    text = DOCUMENT.read_text(encoding="utf-8")
    start, end = "|---|---|---|---|---|---|\n", "\n\n<!-- end -->"
    rows = text.split(start)[1].split(end)[0].splitlines()
    for (family, found), line in zip(measured.items(), rows, strict=True):
        bounds = re.findall(r"1e-\d", line)
        assert line == row(family, bounds), "bring docs/library.md up to date"
        # Rounding differs from machine to machine: a power of ten is left for it.
        assert all(x <= 10 * float(bound) for x, bound in zip(found, bounds, strict=True)), (family, found)


def test_the_readmes_program_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    program = readme[readme.index("## In a program") :].split("```python\n")[1].split("```")[0]
    assert "from prepack_bench import generate" in program
    program = program.replace("from prepack_bench import", "from src import")  # the same files in a checkout
    name = re.search(r'"(\w+/[\w.-]+)"', program)
    assert name
    build("qwen3").save_pretrained(tmp_path)
    some_tokenizer(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(program.replace(name[1], str(tmp_path)), "README.md", "exec"), scope)
    assert len(capsys.readouterr().out.splitlines()) == len(scope["prompts"])


def test_naming_the_package_loads_nothing_heavy() -> None:
    code = "import src.prefilling, sys; sys.exit(bool({'torch', 'transformers', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(__import__("src"), "nonsense")  # noqa: B009


def test_a_function_of_the_package_is_no_folder_of_it() -> None:
    """Whatever was imported before, ``from prepack_bench import prefill`` is the function."""
    code = "import src.prefilling.library, src.report.build; from src import prefill, generate; prefill.__call__"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_picture_is_what_the_code_does() -> None:
    done = command("scripts.picture")
    assert done.returncode == 0, done.stdout + done.stderr
