"""Which models are supported: those that the tests compare with every prompt run alone."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from .freshness import hooks_of
from .shape import windows_of

# Restart positions need rotary embeddings; these families are checked by tests against each prompt run alone.
FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
NF4_BLOCK = 64
# model_type and class in transformers. Each is compared by the tests with every prompt run alone (docs/library.md);
# another architecture may run and yet be wrong: in its positions, its attention or what follows its output layer.
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
FORWARDS = ("transformers", "fused", "compiled", "graphs")
# What wraps a model, by an attribute that it has, and how to come by the model itself.
WRAPPED = {
    "get_base_model": "give model.get_base_model(), whose layers hold the adapter",
    "_orig_mod": "compile in place, with model.compile(), and give the model itself",
}


def check_model(model: PreTrainedModel, forward: str) -> None:
    """See that a model's prompts may be packed.

    Args:
        forward: one of ``FORWARDS``.

    Raises:
        ValueError: they may not: why, and what may.
    """
    config = getattr(model, "config", None)
    family, kind = getattr(config, "model_type", None) or type(model).__name__, type(model).__name__
    if family not in FAMILIES:
        raise ValueError(
            f"model: the architecture '{family}' is not supported; use one of {', '.join(FAMILIES)} (absolute "
            "positions, ALiBi, state-space layers and encoders cannot be packed; others are not checked)"
        )
    own = [base for base in type(model).__mro__ if base.__module__.startswith("transformers.")]
    if FAMILIES[family] not in {base.__name__ for base in own}:
        remedy = next(
            (said for name, said in WRAPPED.items() if hasattr(model, name)), "load it with AutoModelForCausalLM"
        )
        raise ValueError(f"model: {kind} is not transformers' {FAMILIES[family]}; {remedy}")
    if model.training:
        raise ValueError("model: it is in training mode; call model.eval() first")
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) != 1 and (forward != "transformers" or not getattr(model, "hf_device_map", None)):
        remedy = "load all of them on one device, or with device_map= and use forward='transformers'"
        raise ValueError(f"model: its weights are on {' and '.join(places)}; {remedy}")
    if model.get_input_embeddings().weight.is_meta:
        raise ValueError("model: its embeddings are offloaded; keep them on a device in the device_map")
    if forward not in FORWARDS:
        raise ValueError(f"forward: unknown '{forward}'; choose one of {', '.join(FORWARDS)}")
    if problem := unfit(config, forward):
        raise ValueError(": ".join(problem))
    for name, module in model.named_modules():
        inputs = getattr(module, "in_features", None)
        if type(module).__name__ == "Linear4bit" and inputs and inputs % NF4_BLOCK:
            weights = f"4-bit weights of {inputs} inputs, which is no multiple of {NF4_BLOCK}"
            raise ValueError(f"model: {name} has {weights}; load it in 8 bits, or as it is")
    if windows := _other_windows(model):
        raise ValueError(f"model: {windows}")
    if forward != "transformers":
        _check_hooks(model)
        _check_parts(model)


def check_output(model: PreTrainedModel) -> None:
    """See that logits are what the output layer makes of the decoder's hidden states, and nothing else follows it.

    Raises:
        ValueError: the model as a whole does something of its own, which a prefill would leave out.
    """
    (known,) = (base for base in type(model).__mro__ if base.__name__ == FAMILIES[model.config.model_type])
    own = type(model).forward is not vars(known)["forward"] or (
        "forward" in vars(model) and not hasattr(model, "_hf_hook")
    )
    if own or hooks_of(model):
        has = "a forward of its own" if own else "hooks on the model as a whole"
        problem = f"it has {has}, which prefill, calling its decoder and output layer, would leave out"
        raise ValueError(f"model: {problem}; apply it to the logits that prefill gives, or use generate")


def check_positions(model: PreTrainedModel) -> None:
    """See that ``model.generate`` will give the model positions, which it does by what its forward says it takes.

    Raises:
        ValueError: it will not, so that every prompt but the longest would go on from a wrong position.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        problem = "its forward does not name position_ids, so that generate would count pads as positions"
        raise ValueError(f"model: {problem}; name it among its parameters")


def _other_windows(model: PreTrainedModel) -> str | None:
    """Where a layer attends within another window than the configuration's ``layer_types`` give it in its mask."""
    kinds = getattr(model.config, "layer_types", None) or []
    for number, (layer, kind) in enumerate(zip(model.get_decoder().layers, kinds, strict=False)):
        attention = getattr(layer, "self_attn", None)
        if not hasattr(attention, "sliding_window"):
            continue
        slides = getattr(attention, "sliding_window", None) is not None
        if slides != (kind == "sliding_attention"):
            has = "a sliding window" if slides else "no sliding window"
            return f"layer {number} attends with {has}, where layer_types says {kind}; mend config.json"
    return None


def unfit(config: Any, forward: str) -> tuple[str, str] | None:
    """What keeps a model of this configuration from being packed, or from this forward; None where nothing does.

    Returns:
        ``model`` or ``forward``, whichever would have to be another, and why.
    """
    family = config.model_type
    # Frequencies that depend on the longest prompt of a forward would make a prompt's KV depend on its neighbours.
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    if changing := {str(part.get("rope_type")) for part in parts} & {"dynamic", "longrope"}:
        return "model", f"rotary positions of type {min(changing)} depend on a batch's longest prompt"
    for name in ("use_bidirectional_attention", "final_logit_softcapping"):
        if getattr(config, name, None):
            return "model", f"{name}={getattr(config, name)} is not supported"
    if any(window is not None and window < 1 for window in windows_of(config)):
        return "model", f"sliding_window={config.sliding_window} lets no token see itself"
    if forward == "transformers":
        return None
    mixed = len(windows_of(config)) > 1
    act = getattr(config, "hidden_act", "")
    if family in FUSED_FAMILIES and not mixed and act == "silu":
        return None
    what = f"a {family} with layers of several kinds" if mixed else f"this {family}"
    if family in FUSED_FAMILIES and not mixed:
        what = f"a {family} with hidden_act={act}"
    names = ", ".join(FUSED_FAMILIES)
    return "forward", f"{forward} does not serve {what} (but {names} as published); use forward='transformers'"


def _check_hooks(model: PreTrainedModel) -> None:
    """The fused forward calls linear layers alone: what hooks on others would see or change, it would pass over."""
    for name, module in model.get_decoder().named_modules():
        if hooks_of(module) and not hasattr(module, "in_features"):
            has = f"{name or 'the decoder'} has hooks, which the fused forward passes over"
            raise ValueError(f"model: {has}; use forward='transformers'")


def _check_parts(model: PreTrainedModel) -> None:
    """The fused forward computes what its families publish: a part that was replaced or altered is not seen by it."""
    decoder = model.get_decoder()
    altered = [] if type(decoder.embed_tokens) is nn.Embedding else ["embed_tokens"]
    for number, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        found = {
            "": type(layer).__module__.startswith("transformers."),
            "self_attn": type(attention).__module__.startswith("transformers.")
            and attention.scaling == attention.head_dim**-0.5,
            "mlp": type(mlp).__module__.startswith("transformers."),
            "mlp.act_fn": isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation)),
            "input_layernorm": _is_norm(layer.input_layernorm),
            "post_attention_layernorm": _is_norm(layer.post_attention_layernorm),
        }
        for name in ("q_norm", "k_norm"):
            found[f"self_attn.{name}"] = _is_norm(getattr(attention, name, None) or layer.input_layernorm)
        altered += [f"layers.{number}.{name}".rstrip(".") for name, kept in found.items() if not kept]
    altered += [] if _is_norm(decoder.norm) else ["norm"]
    for name, module in decoder.named_modules():
        if "forward" in vars(module) and not hasattr(module, "in_features") and not hasattr(module, "_hf_hook"):
            altered.append(name or "the decoder")
    if altered:
        raise ValueError(f"model: {altered[0]} is not as its family has it; use forward='transformers'")


def _is_norm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.") and hasattr(module, "variance_epsilon")
