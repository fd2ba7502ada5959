"""Whether a model's weights are still those that the fused forward was made from.

Weights change in more ways than one hook tells: a checkpoint is loaded into them, they are cast or moved, trained in
place, or a layer is replaced by an adapter's. So the state of all of them is compared before each use.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

CAPTURING = "transformers.utils.output_capturing"
State: TypeAlias = tuple[Any, ...]
SAMPLES = 32  # entries of a weight that are compared where the forward holds a copy of it


def state_of(model: PreTrainedModel) -> State:
    """Equal as long as no module and no weight of the decoder was replaced, moved, cast or changed in place.

    A change through ``parameter.data`` leaves no trace but in the numbers, of which some are looked at on a CPU. On a
    GPU a forward's joined weights are the very memory of the layers', so that it sees such a change by itself.
    """
    decoder = model.get_decoder()
    modules = tuple((name, id(module), hooks_of(module)) for name, module in decoder.named_modules())
    weights = tuple((name, *_of_weight(weight)) for name, weight in decoder.named_parameters())
    return modules, weights


def hooks_of(module: nn.Module) -> int:
    """How many hooks run before or after a module's forward.

    Those that transformers leaves behind when a call asked for hidden states or attention weights are left out: they
    change nothing, and keep something only within such a call.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return sum(getattr(hook, "__module__", None) != CAPTURING for hook in hooks)


def _of_weight(weight: torch.Tensor) -> tuple[Any, ...]:
    version = None if weight.is_inference() else weight._version  # an inference tensor has none
    sample: list[float] = []
    if weight.device.type == "cpu" and weight.is_contiguous():
        flat = weight.detach().view(-1)
        sample = flat[:: max(1, len(flat) // SAMPLES)].tolist()
    return weight.data_ptr(), weight.dtype, weight.shape, weight.device, version, sample
