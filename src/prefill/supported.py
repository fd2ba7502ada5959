"""Which models the library takes: those that the tests compare with every prompt run alone, never one on trust."""

from __future__ import annotations

from transformers import PreTrainedModel

from src.prefill import models

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
FORWARDS = ("transformers", "fused")


def check_model(model: PreTrainedModel, forward: str) -> None:
    """See that a model's prompts may be packed.

    Args:
        forward: ``transformers`` or ``fused``.

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
        raise ValueError(f"model: {kind} is not transformers' {FAMILIES[family]}; load it with AutoModelForCausalLM")
    if model.training:
        raise ValueError("model: it is in training mode; call model.eval() first")
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) != 1 and (forward == "fused" or not getattr(model, "hf_device_map", None)):
        remedy = "load all of them on one device, or with device_map= and use forward='transformers'"
        raise ValueError(f"model: its weights are on {' and '.join(places)}; {remedy}")
    if model.get_input_embeddings().weight.is_meta:
        raise ValueError("model: its embeddings are offloaded; keep them on a device in the device_map")
    # Frequencies that depend on the longest prompt of a forward would make a prompt's KV depend on its neighbours.
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    if changing := {str(part.get("rope_type")) for part in parts} & {"dynamic", "longrope"}:
        raise ValueError(f"model: rotary positions of type {min(changing)} depend on a batch's longest prompt")
    for name in ("use_bidirectional_attention", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise ValueError(f"model: {name}={getattr(config, name)} is not supported")
    if forward not in FORWARDS:
        raise ValueError(f"forward: unknown '{forward}'; choose one of {', '.join(FORWARDS)}")
    mixed = len(set(getattr(config, "layer_types", None) or [])) > 1
    if forward == "fused" and (family not in models.FAMILIES or mixed or getattr(config, "hidden_act", "") != "silu"):
        what = f"a {family} with layers of several kinds" if mixed else f"this {family}"
        names = ", ".join(models.FAMILIES)
        raise ValueError(f"forward: fused does not serve {what} (but {names} as published); use forward='transformers'")
