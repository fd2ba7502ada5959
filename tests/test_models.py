from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from conftest import TINY, draw_prompts, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from src.cli import UserError
from src.compose import compose
from src.config import ModelConfig
from src.measure.verify import verify
from src.prefilling.engines import make_engine
from src.prefilling.loading import load_model
from src.prefilling.method import PrefillOptions
from src.prefilling.methods import METHODS
from src.prefilling.models import check_quantizable, find_model

CPU = torch.device("cpu")
WIDE = TINY | {"hidden_size": 64, "intermediate_size": 128}
# Parameters of the published checkpoints; of the two small shapes by hand (tied embeddings).
PUBLISHED = {
    "llama2-1.3b": 1_345_423_360,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "mistral-7b": 7_241_732_096,
    "llama-15m": 15_191_712,
    "llama-110m": 109_529_856,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_shipped_shapes_are_the_published_ones(name: str) -> None:
    config = compose([f"model={name}", "model.weights=random"])
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(find_model(config.model).config)
    shared = model.lm_head.weight.numel() if model.config.tie_word_embeddings else 0
    assert model.num_parameters() - shared == PUBLISHED[name]


def test_random_weights_follow_the_seed_and_live_where_asked() -> None:
    one, same, other = (
        load_model(find_model(ModelConfig("tiny", architecture=dict(TINY))), CPU, torch.bfloat16, "none", seed)
        for seed in (1, 1, 2)
    )
    tensors = [*one.parameters(), *one.buffers()]
    assert {t.device.type for t in tensors} == {"cpu"}
    assert {p.dtype for p in one.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight)
    assert one.lm_head.weight.float().std().item() == pytest.approx(TINY["initializer_range"], rel=0.05)


def test_tied_embeddings_stay_tied() -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("bits", ["4", "8"])
def test_quantized_random_weights_are_those_weights_rounded(bits: str) -> None:
    import bitsandbytes.functional as bnb

    source = find_model(ModelConfig("wide", architecture=dict(WIDE)))
    full = load_model(source, CPU, torch.float32, "none", 1).model.layers[1].mlp.down_proj.weight
    model = load_model(source, CPU, torch.float32, bits, 1)
    weight = model.model.layers[1].mlp.down_proj.weight
    if bits == "4":
        rounded = bnb.dequantize_4bit(weight.data, weight.quant_state)
    else:
        rounded = weight.data.float() * (full.abs().amax(1, keepdim=True) / 127)
    assert weight.element_size() == 1
    assert float((rounded - full).norm() / full.norm()) < {"4": 0.15, "8": 0.02}[bits]
    assert type(model.lm_head) is torch.nn.Linear  # as bitsandbytes leaves it when it loads a checkpoint
    for forward in ("fused", "transformers"):
        engine = make_engine(model, METHODS["prepacking"], PrefillOptions(forward=forward))
        assert verify(model, [(draw_prompts([9, 4, 7]), None)], engine, bits).problem is None


def test_the_authors_four_bits_are_fp4_with_float32_products(tmp_path: Path) -> None:
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    drawn = find_model(ModelConfig("wide", architecture=dict(WIDE)))
    for source in (drawn, find_model(ModelConfig("mine", path=str(tmp_path)))):
        found = {}
        for numerics in ("own", "authors"):
            model = load_model(source, CPU, torch.bfloat16, "4", 1, numerics=numerics)
            layer = model.model.layers[0].mlp.up_proj
            found[numerics] = (
                layer.weight.quant_state.quant_type,
                layer.compute_dtype,
                model.config._attn_implementation,
            )
            engine = make_engine(model, METHODS["prepacking"], PrefillOptions("ttft", "paper", numerics=numerics))
            assert verify(model, [(draw_prompts([9, 4, 7]), None)], engine, "4").problem is None
        assert found == {"own": ("nf4", torch.bfloat16, "sdpa"), "authors": ("fp4", torch.float32, "eager")}


def test_a_local_folder_is_loaded_and_keeps_its_weights(tmp_path: Path) -> None:
    saved = tiny_model()
    saved.save_pretrained(tmp_path)
    source = find_model(ModelConfig("mine", path=str(tmp_path), weights="hub"))
    assert (source.weights, source.detail) == ("local", f"folder {tmp_path.name} sha256:{source.identity}")
    loaded = load_model(source, CPU, torch.float32, "none", seed=9)
    assert torch.equal(loaded.lm_head.weight, saved.lm_head.weight)
    quantizable = tiny_model(hidden_size=64, intermediate_size=128)
    quantizable.save_pretrained(tmp_path / "wide")
    wide = find_model(ModelConfig("mine", path=str(tmp_path / "wide")))
    assert load_model(wide, CPU, torch.float32, "4", 0).model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_a_path_of_ones_own_is_a_model_of_its_own(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "my model")
    config = compose([f"model.path='{tmp_path / 'my model'}'"])
    assert (config.model.name, config.model.architecture) == ("my-model", None)
    assert find_model(config.model).weights == "local"
    elsewhere = compose(["model=llama2-7b", "model.path=nobody/nothing"])
    with pytest.raises(UserError, match=r"model\.path: nobody/nothing"):
        find_model(elsewhere.model)  # never random weights of Llama 2's shape under that name


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("none left"), RuntimeError("can't allocate memory")]
)
def test_memory_that_runs_out_while_loading_is_no_fault_of_the_folder(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path)
    source = find_model(ModelConfig("tiny", path=str(tmp_path)))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)) as found:
        load_model(source, CPU, torch.float32, "none", seed=0)
    assert found.value is error


def test_random_weights_of_a_local_shape(tmp_path: Path) -> None:
    tiny_model().config.save_pretrained(tmp_path)
    source = find_model(ModelConfig("mine", path=str(tmp_path), weights="random"))
    assert source.weights == "random"
    assert source.config.hidden_size == TINY["hidden_size"]


def change_checkpoint(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.pop("model.layers.0.mlp.up_proj.weight"),
            "lacks 1 of its tensors (model.layers.0.mlp.up_proj.weight)",
        ),
        (lambda t: t.pop("lm_head.weight"), "lacks 1 of its tensors (lm_head.weight)"),
        (lambda t: [t.pop(name) for name in list(t) if ".1." in name], "lacks 9 of its tensors (model.layers.1."),
        (lambda t: t.update({"model.norm.weight": torch.ones(5)}), "other shapes than its config.json says"),
    ],
)
def test_a_checkpoint_that_lacks_tensors_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    """Random numbers stood in their place, and the row said VALID."""
    tiny_model().save_pretrained(tmp_path)
    source = find_model(ModelConfig("mine", path=str(change_checkpoint(tmp_path, change))))
    with pytest.raises(UserError, match=r"^model\.path: ") as refused:
        load_model(source, CPU, torch.float32, "none", 0)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tied_embeddings_are_no_lack_and_what_is_left_over_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    change_checkpoint(tmp_path, lambda tensors: tensors.update(extra=torch.zeros(3)))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_model(find_model(ModelConfig("mine", path=str(tmp_path))), CPU, torch.float32, "none", 0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "holds 1 tensors that its model does not have (extra): they are left out" in capsys.readouterr().err


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.path: .* holds no safetensors weights"):
        find_model(ModelConfig("mine", path=str(tmp_path)))


def test_auto_weights_fall_back_with_a_note_and_hub_weights_never_do(capsys: pytest.CaptureFixture[str]) -> None:
    model = ModelConfig("mine", path="nobody/nothing", architecture=dict(TINY))
    assert find_model(model).weights == "random"
    assert "using random weights of mine's published shape" in capsys.readouterr().err
    model.weights = "hub"
    with pytest.raises(UserError, match=r"model\.path: nobody/nothing: HF_HUB_OFFLINE is set and the cache"):
        find_model(model)


def test_architectures_that_are_not_checked_are_refused(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(
        UserError,
        match=r"family 'gpt2' are not measured here; choose a model of the families llama, mistral, qwen2, qwen3$",
    ):
        find_model(ModelConfig("mine", path=str(tmp_path)))
    mixed = TINY | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}
    with pytest.raises(UserError, match=r"some of its layers have a sliding window, and some have none"):
        find_model(ModelConfig("mixed", architecture=mixed))


def test_shapes_that_four_bits_cannot_hold_are_refused_before_loading() -> None:
    config = compose(["model=llama-15m"])
    with pytest.raises(
        UserError, match=r"loadbit: 4-bit weights need .* multiples of 64; this model's hidden_size is 288"
    ):
        check_quantizable(find_model(config.model), "4", torch.device("cpu"))
