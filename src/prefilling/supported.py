"""Which models are supported: those that the tests compare with every prompt run alone."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

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
    if forward != "transformers":
        _check_hooks(model)


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
