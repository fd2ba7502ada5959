"""A model split over several GPUs by accelerate, layer after layer, where it is too large for one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..cli import UserError

USABLE = 0.9  # of a GPU's free memory, for weights; under ``auto`` they are spread evenly, which leaves more
Places = dict[str, torch.device]  # the device of each module, or of the modules within it


def places_for(
    model: PreTrainedModel, strategy: str, dtype: torch.dtype, loadbit: str, memory: Mapping[int, int]
) -> Places:
    """Where each part of a model goes, no layer being cut.

    Args:
        model: on the meta device; nothing of it is moved.
        strategy: ``auto`` spreads the weights evenly, ``sequential`` fills one GPU after the other.
        memory: bytes that each GPU, by its number, has for weights.

    Raises:
        UserError: they do not fit.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory

    model.tie_weights()
    stored = {"4": CustomDtype.INT4, "8": torch.int8}.get(loadbit, dtype)
    # bitsandbytes quantizes linear layers only, and not the output layer.
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    head = model.get_output_embeddings()
    whole = {name: dtype for name, weight in model.named_parameters() if name not in linear or weight is head.weight}
    kept, room = list(model._no_split_modules or []), dict(memory)
    if strategy == "auto":
        room = get_balanced_memory(model, room, kept, dtype=stored, special_dtypes=whole)
    found = infer_auto_device_map(model, room, kept, dtype=stored, special_dtypes=whole)
    if any(not isinstance(place, int) for place in found.values()):
        held = ", ".join(f"{size / 2**30:.1f} GB on GPU {number}" for number, size in memory.items())
        raise UserError(
            "device_map",
            f"the weights do not fit into what is free ({held})",
            "use loadbit=4, a smaller model, or more GPUs",
        )
    return {name: torch.device("cuda", place) for name, place in found.items()}


def free_memory(devices: tuple[torch.device, ...]) -> dict[int, int]:
    """Bytes that each GPU has for weights."""
    return {device.index: int(USABLE * torch.cuda.mem_get_info(device)[0]) for device in devices}


def skeleton(config: PretrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model without memory for its weights; buffers (rotary frequencies) are computed."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model


def place_of(places: Places, name: str) -> torch.device:
    """The device of a module or parameter: that of the longest part of its name which is placed."""
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        if (part := ".".join(parts[:end])) in places:
            return places[part]
    raise KeyError(name)


def dispatch(model: PreTrainedModel, places: Places) -> PreTrainedModel:
    """Have accelerate move what each part of a model reads to where its weights are; on one device, the whole model."""
    from accelerate import dispatch_model

    placed: Any = model
    if len(devices := set(places.values())) == 1:
        placed = placed.to(devices.pop())
    else:
        placed = dispatch_model(placed, dict(places), skip_keys=model._skip_keys_device_placement)
    assert isinstance(placed, PreTrainedModel)
    return placed


def in_words(model: nn.Module) -> str | None:
    """``cuda:0: embed_tokens, layers 0-15; cuda:1: layers 16-31, norm, lm_head``; None where it is on one device."""
    placed: dict[str, list[str]] = {}
    for name, place in (getattr(model, "hf_device_map", None) or {}).items():
        on = f"cuda:{place}" if isinstance(place, int) else str(place)
        placed.setdefault(on, []).append(name.removeprefix("model."))
    if len(placed) < 2:
        return None
    return "; ".join(f"{on}: {', '.join(_ranges(names))}" for on, names in placed.items())


def _ranges(names: list[str]) -> list[str]:
    """Layers that follow each other as one entry."""
    found: list[str] = []
    first = last = -1
    for name in names:
        number = int(match[1]) if (match := re.fullmatch(r"layers\.(\d+)", name)) else None
        if number is not None and number == last + 1 and first >= 0:
            last = number
            found[-1] = f"layers {first}-{last}"
        elif number is not None:
            first = last = number
            found.append(f"layer {number}")
        else:
            first = last = -1
            found.append(name)
    return found
