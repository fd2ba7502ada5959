"""The CUDA path without a GPU: fake CUDA tensors carry device, shape and type, but no data.

What mixes devices, or hands a kernel a shape or type that it refuses, fails here as it would on a GPU. What the host
reads of such a tensor is made up (zeros and True), so that the path goes on. A torch built for CPUs cannot do this:
CONTRIBUTING.md says how to set up one that is built for CUDA, on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import draw_prompts
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, varlen
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, MaxLengthCriteria

from src.measure.kernels import ideals
from src.measure.timer import NoTimer
from src.measure.verify import verify
from src.prefilling import continuous_batching as serving
from src.prefilling import passes
from src.prefilling.attention import flash, flex
from src.prefilling.attention.kernels import KERNELS
from src.prefilling.engines import make_engine
from src.prefilling.ideal import Ideal
from src.prefilling.library import prefill
from src.prefilling.loading import ATTENTION, random_model
from src.prefilling.method import PrefillOptions
from src.prefilling.methods import METHODS
from src.prefilling.split import skeleton

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch built for CUDA, this one is for CPUs")
GPU = torch.device("cuda", 0)
BASE: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with grouped heads": {"model_type": "llama", "num_key_value_heads": 2},
    "mistral with a sliding window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 24},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32},
}
LENGTHS = [1, 60, 7, 33, 2, 19, 200, 5]
WAYS = [("modern", "fused"), ("modern", "transformers"), ("paper", "transformers")]
PADDED_OR_PACKED = ["full-batching", "prepacking", "padding-free"]


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """CUDA tensors without data, whose values a host reads as zeros."""
    from_numpy, tensor = torch.from_numpy, torch.tensor

    def made(*arguments: Any, device: Any = None, **options: Any) -> torch.Tensor:  # else torch would really ask CUDA
        found = mode.from_tensor(tensor(*arguments, **options))
        return found if device is None else found.to(device)

    def listed(own: torch.Tensor) -> Any:
        return np.zeros(own.shape, dtype=np.int64).tolist()

    reads: dict[str, Callable[[torch.Tensor], Any]] = {
        "tolist": listed, "item": lambda _: 0, "__int__": lambda _: 0, "__float__": lambda _: 0.0,
        "__index__": lambda _: 0, "__bool__": lambda _: True, "pin_memory": lambda own: own,
    }  # fmt: skip
    over: list[bool] = []  # whether generation is, which transformers reads off a tensor

    def reached(own: MaxLengthCriteria, token_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        over[:] = [token_ids.shape[1] >= own.max_length]
        return torch.full((len(token_ids),), over[0], device=token_ids.device, dtype=torch.bool)

    def unfinished(_: Any, finished: Any, *__: Any, **___: Any) -> bool:
        return finished is False or not over[0]

    @functools.wraps(varlen.varlen_attn)
    def checked(*arguments: Any, **options: Any) -> Any:  # what it says of fake tensors leaves its offsets' device out
        assert {each.device for each in arguments if isinstance(each, torch.Tensor)} == {GPU}
        assert (arguments[3].dtype, arguments[4].dtype) == (torch.int32, torch.int32)
        return kernel(*arguments, **options)

    kernel = varlen.varlen_attn
    with contextlib.ExitStack() as stack, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, read in reads.items():
            stack.enter_context(mock.patch.object(torch.Tensor, name, read))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", listed))
        stack.enter_context(mock.patch.object(MaxLengthCriteria, "__call__", reached))
        stack.enter_context(mock.patch.object(GenerationMixin, "_has_unfinished_sequences", unfinished))
        stack.enter_context(mock.patch.object(varlen, "varlen_attn", checked))
        stack.enter_context(mock.patch.object(torch, "tensor", made))
        stack.enter_context(mock.patch.object(torch, "from_numpy", lambda array: mode.from_tensor(from_numpy(array))))
        yield mode


def model_of(shape: str, dtype: torch.dtype) -> Any:
    settings = BASE | SHAPES[shape]
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with GPU:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION["own"])
    return model.eval().requires_grad_(False)


def on_gpu(cache: Any) -> bool:
    return {(layer.keys.device, layer.values.device) for layer in cache.layers} == {(GPU, GPU)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("protocol", "forward"), WAYS)
def test_every_method_is_verified_and_generation_goes_on(
    shape: str, dtype: torch.dtype, protocol: str, forward: str, fake: FakeTensorMode
) -> None:
    model, prompts = model_of(shape, dtype), draw_prompts(LENGTHS)
    for method in PADDED_OR_PACKED[: 2 if protocol == "paper" else 3]:
        limit = 150 if protocol == "modern" else None  # in several forwards
        for metric in ("prefill", "ttft"):
            options = PrefillOptions(metric, protocol, forward=forward, max_tokens=limit)
            engine = make_engine(model, METHODS[method], options)
            done = engine.prefill(prompts, NoTimer())
            assert on_gpu(done.cache), method
            assert done.mask is None or done.mask.device == GPU
            assert done.logits is None or done.logits.device == GPU
        found = verify(model, [(prompts, None)], engine, "none", generate_tokens=2)
        assert (found.prompts, found.continued, found.generated_tokens, found.problem) == (8, 8, 16, None), method


@pytest.mark.parametrize("shape", ["llama with grouped heads", "mistral with a sliding window"])
def test_the_librarys_cache_is_handed_to_generate(shape: str, fake: FakeTensorMode) -> None:
    model = model_of(shape, torch.bfloat16)
    done = prefill(model, draw_prompts(LENGTHS))
    assert on_gpu(done.cache)
    assert {done.attention_mask.device, done.logits.device} == {GPU}
    first = done.logits.argmax(-1)[:, None]
    mask = torch.cat([done.attention_mask, done.attention_mask.new_ones(len(LENGTHS), 1)], dim=1)
    going = model.generate(
        first, attention_mask=mask, past_key_values=done.cache, max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert (going.device, going.shape) == (GPU, (len(LENGTHS), 4))


class Quantized(torch.nn.Module):
    """A layer through bitsandbytes' own operators; its parameters are of a class that fake tensors cannot be of."""

    def __init__(self, linear: torch.nn.Linear, loadbit: str) -> None:
        super().__init__()
        self.loadbit, self.shape = loadbit, tuple(linear.weight.shape)
        if loadbit == "4":
            self.stored = torch.empty(linear.weight.numel() // 2, 1, dtype=torch.uint8, device=GPU)
            self.scale = torch.empty(linear.weight.numel() // 64, device=GPU)
        else:
            self.stored = torch.empty(self.shape, dtype=torch.int8, device=GPU)
            self.scale = torch.empty(self.shape[0], device=GPU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ops = torch.ops.bitsandbytes
        if self.loadbit == "4":
            weight = ops.dequantize_4bit(self.stored, self.scale, 64, "nf4", self.shape, x.dtype)
            return torch.nn.functional.linear(x, weight)
        rows, stats, _ = ops.int8_vectorwise_quant(x.reshape(-1, x.shape[-1]).to(torch.float16), 0.0)
        return ops.int8_scaled_mm(rows, self.stored, stats, self.scale, dtype=x.dtype).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("loadbit", ["4", "8"])
@pytest.mark.parametrize(("protocol", "forward"), WAYS)
def test_quantized_layers_prefill(loadbit: str, protocol: str, forward: str, fake: FakeTensorMode) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    model = model_of("llama with grouped heads", torch.bfloat16)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.model.get_submodule(parent), child, Quantized(module, loadbit))
    for method in PADDED_OR_PACKED[: 2 if protocol == "paper" else 3]:
        engine = make_engine(model, METHODS[method], PrefillOptions("ttft", protocol, forward=forward))
        assert on_gpu(engine.prefill(draw_prompts(LENGTHS), NoTimer()).cache)


def test_random_weights_are_drawn_where_they_will_live(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("llama", **BASE)
    with unset_fake_temporarily():
        empty = skeleton(config, torch.bfloat16, ATTENTION["own"])
    monkeypatch.setattr(torch, "Generator", mock.Mock(return_value=mock.Mock(manual_seed=lambda _: None)))
    monkeypatch.setattr("src.prefilling.split.dispatch", lambda model, _: model)  # it swaps tensors
    model = random_model(empty, {"": GPU}, torch.bfloat16, "none", seed=0)
    assert {(weight.device, weight.dtype) for weight in model.parameters()} == {(GPU, torch.bfloat16)}


@pytest.mark.parametrize("kernel", [None, *map(str, ["flash", "cudnn", "efficient"]), "varlen"])
def test_the_ideal_by_every_kernel(kernel: str | None, fake: FakeTensorMode) -> None:
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
                "efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip
    model = model_of("llama", torch.bfloat16)
    done = Ideal(model, backends.get(str(kernel), kernel)).prefill(draw_prompts(LENGTHS), NoTimer())
    assert on_gpu(done.cache)
    assert done.logits is not None
    assert done.logits.device == GPU
    assert [engine.attention for engine in ideals(model, PrefillOptions())] == [
        "no mask, SDPA", "no mask, FLASH_ATTENTION", "no mask, CUDNN_ATTENTION", "no mask, EFFICIENT_ATTENTION",
        "no mask, varlen", f"no mask, fused forward, {KERNELS['varlen'].WORDS}",
    ]  # fmt: skip


def test_continuous_batching_is_set_up(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paged cache, that is; streams are the driver's, which there is none of."""
    model = model_of("llama", torch.bfloat16)
    for name in ("Stream", "Event", "current_stream", "synchronize", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (80 * 2**30, 80 * 2**30))
    manager = serving._manager(model, [LENGTHS, LENGTHS[:3]], flash=True)
    manager.warmup()
    cache = manager.batch_processor.cache
    assert {each.device for each in [*cache.key_cache, *cache.value_cache]} == {GPU}
    assert set(map(id, manager.model.parameters())) == set(map(id, model.parameters()))  # no weight is held twice


def _flash(q: torch.Tensor, *tensors: Any, cu_seq_lens_q: torch.Tensor, **_: Any) -> torch.Tensor:
    """What a FlashAttention package asks of its inputs."""
    assert {each.device for each in (q, *tensors[:2], cu_seq_lens_q)} == {GPU}
    assert cu_seq_lens_q.dtype == torch.int32
    return torch.empty_like(q)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", ["segments", "dense", "varlen", "flash", "flex"])
def test_every_attention_kernel_prefills(
    shape: str, attention: str, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flash, "interface", lambda: "flash_attention_2")
    monkeypatch.setattr("transformers.modeling_flash_attention_utils._flash_attention_forward", _flash)
    monkeypatch.setattr(flex, "compiled", lambda _: flex_attention)  # nothing compiles without a GPU
    monkeypatch.setattr(flex, "missing", lambda *_: None)
    model, prompts = model_of(shape, torch.bfloat16), draw_prompts(LENGTHS)
    for method in PADDED_OR_PACKED:
        for forward in ("fused", "transformers"):
            options = PrefillOptions("ttft", forward=forward, attention=attention, max_tokens=150)
            done = make_engine(model, METHODS[method], options).prefill(prompts, NoTimer())
            assert on_gpu(done.cache), method


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("forward", ["compiled", "graphs"])
def test_compiled_and_graphs_prefill(
    shape: str, forward: str, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(run: Callable[[], None], pool: object) -> Callable[[], None]:
        run()
        return run

    monkeypatch.setattr("src.prefilling.graphs.cuda_graph", called)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(passes, "compiled", lambda: passes.PLAIN)
    model = model_of(shape, torch.bfloat16)
    for method in PADDED_OR_PACKED:
        engine = make_engine(model, METHODS[method], PrefillOptions("ttft", forward=forward))
        for lengths in (LENGTHS, LENGTHS[::-1], [3]):
            assert on_gpu(engine.prefill(draw_prompts(lengths), NoTimer()).cache), method
