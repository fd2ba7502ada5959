"""Loads a model's weights, or draws them at random, whole, in 8 or in 4 bits, on one device or split over several."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..cli import UserError, ran_out_of_memory, warn
from . import split
from .models import ModelSource, unloadable

ATTENTION = {"own": "sdpa", "authors": "eager"}  # by numerics


def load_model(
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    loadbit: str,
    seed: int,
    device_map: str | None = None,
    devices: tuple[torch.device, ...] = (),
    numerics: str = "own",
) -> PreTrainedModel:
    """Load or build the model, ready for inference.

    Args:
        device: where it goes as a whole, unless ``device_map`` (``auto`` or ``sequential``) has it split over
            ``devices``.
        numerics: ``authors`` for eager attention and, in 4 bits, fp4 with float32 products, as their code has it.

    Raises:
        UserError: quantization that the shape or machine cannot take; weights that cannot be fetched.
        hub.GatedError: the licence of the weights was not accepted.
    """
    places = {"": device}
    if device_map or source.weights == "random":
        empty = split.skeleton(source.config, dtype, ATTENTION[numerics])
    if device_map:
        places = split.places_for(empty, device_map, dtype, loadbit, split.free_memory(devices))
    if source.weights == "random":
        model = random_model(empty, places, dtype, loadbit, seed, numerics)
    else:
        model = _from_checkpoint(source, places, dtype, loadbit, numerics)
    model.eval()
    model.requires_grad_(False)
    return model


def _from_checkpoint(
    source: ModelSource, places: split.Places, dtype: torch.dtype, loadbit: str, numerics: str
) -> PreTrainedModel:
    assert source.path is not None
    options: dict[str, Any] = {"revision": source.revision} if source.weights == "hub" else {}
    if loadbit != "none":
        options["quantization_config"] = _quantization(loadbit, dtype, numerics)
    if source.gguf:
        options["gguf_file"] = source.gguf
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is missing is reported below, in one line
    # Turning a GGUF file into plain weights takes seconds, and has a progress bar for each of two steps.
    quiet = contextlib.redirect_stderr(io.StringIO()) if source.gguf else contextlib.nullcontext()
    try:
        with quiet:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=dtype,
                device_map=places,
                attn_implementation=ATTENTION[numerics],
                use_safetensors=True,  # never a pickle, which can run code
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        if "ignore_mismatched_sizes" in str(error):
            error = ValueError("its tensors have other shapes than its config.json says")
        raise unloadable(error, source.path, source.weights != "hub", source.revision) from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    model, loading = loaded
    _check_complete(source, loading)
    return model


def _check_complete(source: ModelSource, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that lacks tensors: transformers puts random numbers in their place, and goes on.

    Raises:
        UserError: it does.
    """
    if missing := sorted(loading["missing_keys"]):
        problem = (
            f"{source.path} lacks {len(missing)} of its tensors ({', '.join(missing[:3])}{', …' * bool(missing[3:])})"
        )
        raise UserError("model.path", problem, "give a complete checkpoint: random numbers would stand in their place")
    if unexpected := sorted(loading["unexpected_keys"]):
        some = ", ".join(unexpected[:3]) + ", …" * bool(unexpected[3:])
        warn(f"{source.path} holds {len(unexpected)} tensors that its model does not have ({some}): they are left out")


def _four_bits(dtype: torch.dtype, numerics: str) -> tuple[str, torch.dtype]:
    """How 4-bit weights are coded, and the type that products are computed in.

    The authors ask for ``load_in_4bit`` and nothing else, for which bitsandbytes takes fp4 and float32.
    """
    return ("fp4", torch.float32) if numerics == "authors" else ("nf4", dtype)


def _quantization(loadbit: str, dtype: torch.dtype, numerics: str) -> Any:
    from transformers import BitsAndBytesConfig

    if loadbit == "8":
        return BitsAndBytesConfig(load_in_8bit=True)
    code, products = _four_bits(dtype, numerics)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=code, bnb_4bit_compute_dtype=products)


@torch.no_grad()
def random_model(
    model: PreTrainedModel, places: split.Places, dtype: torch.dtype, loadbit: str, seed: int, numerics: str = "own"
) -> PreTrainedModel:
    """Draw each tensor of a model on the meta device where and as it will live; layers are quantized one by one.

    No copy in another precision or place ever exists, so a 13B model in 4 bits needs the memory of a 4-bit model.
    """
    generators = {device: torch.Generator(device).manual_seed(seed) for device in places.values()}
    std = getattr(model.config, "initializer_range", 0.02)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            device = split.place_of(places, f"{name}.{key}")
            drawn = torch.empty(parameter.shape, device=device, dtype=dtype)
            if isinstance(module, (nn.Linear, nn.Embedding)) and key == "weight":
                drawn.normal_(0.0, std, generator=generators[device])
            else:
                drawn.fill_(0.0 if key == "bias" else 1.0)  # norms start at one
            module.register_parameter(key, nn.Parameter(drawn, requires_grad=False))
        if loadbit != "none" and isinstance(module, nn.Linear) and module is not head:
            parent, _, child = name.rpartition(".")
            setattr(
                model.get_submodule(parent), child, _quantized(module, module.weight.device, dtype, loadbit, numerics)
            )
    model.tie_weights()
    return split.dispatch(model, places)


def _quantized(linear: nn.Linear, device: torch.device, dtype: torch.dtype, loadbit: str, numerics: str) -> nn.Module:
    import bitsandbytes as bnb

    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    layer: nn.Module
    if loadbit == "4":
        code, products = _four_bits(dtype, numerics)
        layer = bnb.nn.Linear4bit(*shape, compute_dtype=products, quant_type=code, device="meta")
        layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type=code, module=layer)
    else:
        layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
        # From the CPU on purpose: bitsandbytes silently leaves weights as they are that are on the GPU already.
        layer.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    layer.bias = linear.bias
    layer = layer.to(device)  # bitsandbytes quantizes when the weight is moved
    if layer.weight.element_size() != 1:
        raise RuntimeError(f"bitsandbytes left a weight of {shape} in {layer.weight.dtype}")
    return layer
