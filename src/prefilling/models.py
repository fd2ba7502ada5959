"""Which model a run measures: on the hub, in a folder or GGUF file, or random of a published shape; no weights yet."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from .. import hub
from ..cli import UserError, ran_out_of_memory
from ..config import ModelConfig
from . import gguf, identity
from .shape import heads_of, windows_of
from .supported import FAMILIES, FUSED_FAMILIES, NF4_BLOCK, unfit

OLD_NAMES = {"rope_theta", "rope_scaling", "torch_dtype"}  # older names of fields, which transformers still accepts


@dataclass(frozen=True)
class ModelSource:
    """A model that was found but not loaded yet.

    Attributes:
        weights: ``hub``, ``local``, ``package`` or ``random``.
        detail: hub id and commit, folder name, or the shape's name and the seed's rule.
        path: what transformers loads it from, None for random weights without a path.
        gguf: name of the file in the folder ``path`` that holds weights, shape and tokenizer; None for other formats.
        identity: hex digits that are the same for the same configuration and weights, whatever they are called.
    """

    config: PretrainedConfig
    weights: str
    detail: str
    path: str | None
    revision: str | None
    identity: str = ""
    gguf: str | None = None

    @property
    def max_positions(self) -> int:
        """The longest prompt, in tokens, that the model was made for."""
        return int(self.config.max_position_embeddings)


def find_model(model: ModelConfig) -> ModelSource:
    """Decide where weights come from and read the model's shape, without loading weights.

    Raises:
        UserError: neither weights nor a shape can be had in the way that ``model.weights`` asks for, or the
            architecture is not among those that are checked.
        hub.GatedError: ``model.weights=hub`` and the licence was not accepted.
    """
    if model.weights == "package":
        file, detail = gguf.in_package(model)
        return _find_in_gguf(file, "package", detail)
    place = Path(str(model.path)).expanduser() if model.path else None
    if place and model.weights != "random" and gguf.is_gguf(place):
        return _find_in_gguf(place, "local", f"file {place.name}")
    local = place is not None and place.is_dir()
    if model.path and (model.architecture is None or model.weights != "random"):
        try:
            return _find_by_path(model, local)
        except UserError as error:
            if local or model.weights == "hub" or model.architecture is None:
                raise
            hub.fall_back(error, f"random weights of {model.name}'s published shape")
    elif model.weights == "hub":
        raise UserError("model.weights", f"hub, but {model.name} has no hub id", "set model.path, or weights=random")
    if model.architecture is None:
        raise UserError("model", f"{model.name} has neither model.path nor model.architecture", "set one of them")
    shape = dict(model.architecture)
    family = str(shape.pop("model_type", "llama"))
    _check_family(family, "model.architecture")
    try:
        config = AutoConfig.for_model(family, **shape)
    except Exception as error:  # transformers validates shapes with exceptions of several kinds
        if ran_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]  # its first line alone names only the rule
        raise UserError("model.architecture", f"transformers does not accept it ({reason})", "mend the YAML") from None
    if unknown := sorted(set(shape) - set(AutoConfig.for_model(family).to_dict()) - OLD_NAMES):
        raise UserError("model.architecture", f"a {family} has no '{unknown[0]}'", "use the names of its config.json")
    same = identity.of_shape(model.architecture)
    return _checked(ModelSource(config, "random", f"random, shape {model.name}", None, None, same))


def _find_by_path(model: ModelConfig, local: bool) -> ModelSource:
    path = str(Path(str(model.path)).expanduser()) if local else str(model.path)
    if not local:
        hub.absence()
        if path.startswith((".", "/", "~")):
            raise UserError("model.path", f"there is no folder '{path}'", "give an existing folder or a hub id")
    try:
        commit = None if local else hub.commit_of(path, "model", model.revision)
        config = AutoConfig.from_pretrained(path, revision=commit, trust_remote_code=False)
        drawn = model.weights == "random"
        same = identity.of_folder(Path(path), not drawn) if local else identity.of_text(f"{path}@{commit}")
    except Exception as error:  # OSError, ValueError or the hub's own, by what failed
        raise unloadable(error, path, local, model.revision) from None
    detail = f"folder {Path(path).name} sha256:{same}" if local else f"{path}@{commit}"
    if drawn:
        return _checked(ModelSource(config, "random", f"random, shape of {detail}", None, None, same))
    source = _checked(ModelSource(config, "local" if local else "hub", detail, path, commit, same))
    try:
        safe = _has_safetensors(path, commit)
        if not safe and not local and hub.absence():
            raise FileNotFoundError("model.safetensors")
    except Exception as error:
        raise unloadable(error, path, local, model.revision) from None
    if not safe:
        problem = f"{path} holds no safetensors weights, and pickled ones, which can run code, are never loaded"
        raise UserError("model.path", problem, "name another revision or model, or use model.weights=random")
    return source


def _find_in_gguf(file: Path, weights: str, detail: str) -> ModelSource:
    gguf.check_reader()
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # a file that was cut, or an architecture that transformers does not read from GGUF
        raise unloadable(error, str(file), local=True) from None
    same = identity.of_file(file)
    detail = f"{detail} sha256:{same}"
    return _checked(ModelSource(config, weights, detail, str(file.parent), None, same, file.name))


def _has_safetensors(path: str, revision: str | None) -> bool:
    from transformers.utils import cached_file

    names = (
        "model.safetensors.index.json",
        "model.safetensors",
    )  # the index is small, and the weights are needed anyway
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    return any(cached_file(path, name, **options) is not None for name in names)


def _checked(source: ModelSource) -> ModelSource:
    _check_family(source.config.model_type, "model.path")
    if len(windows_of(source.config)) > 1:
        problem = "some of its layers have a sliding window, and some have none"
        raise UserError("model.path", problem, "choose a model whose layers are all of one kind")
    return source


def _check_family(family: str, setting: str) -> None:
    if family not in FUSED_FAMILIES:
        families = ", ".join(FUSED_FAMILIES)
        problem = f"models of the family '{family}' are not measured here"
        library = ", or prefill it in a program (prepack_bench.prefill takes it)" if family in FAMILIES else ""
        raise UserError(setting, problem, f"choose a model of the families {families}{library}")


def unloadable(error: Exception, path: str, local: bool, revision: str | None = None) -> UserError:
    """What to tell the user where a model's configuration or weights could not be read."""
    if not local:
        return hub.explain(error, "model.path", path, "use model.weights=random or a local folder", revision)
    reason = " ".join(str(error).split())[:200] or type(error).__name__  # its first line alone may name only a rule
    remedy = "give a folder with config.json and safetensors weights, or use model.weights=random"
    return UserError("model.path", f"{path} could not be loaded ({reason})", remedy)


def check_served(source: ModelSource, forward: str) -> None:
    """Find out before weights are loaded whether the forward can serve this model.

    Raises:
        UserError: it cannot.
    """
    if found := unfit(source.config, forward):
        setting, problem = found
        raise UserError("model.path" if setting == "model" else setting, problem)


def check_quantizable(source: ModelSource, loadbit: str, device: torch.device) -> None:
    """Find out before weights are loaded whether bitsandbytes can serve this model here.

    Importing it opens the GPU, so whether it loads is found out on a GPU by the process that measures, not by one that
    plans.

    Raises:
        UserError: it cannot.
    """
    if loadbit == "none":
        return
    if source.gguf:
        problem = f"{source.gguf} is turned into plain weights as it is read, and these are not quantized again"
        raise UserError("loadbit", problem, "use loadbit=none, or a folder of safetensors")
    # It would log a line per layer and batch for inputs in other types than float16, within the timed span.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if device.type != "cuda" or torch.cuda.is_initialized():
        try:
            import bitsandbytes  # noqa: F401
        except Exception as error:  # a CUDA library that it lacks shows as RuntimeError or OSError
            raise UserError("loadbit", f"bitsandbytes cannot be used here ({error})", "use loadbit=none") from None
    config = source.config
    _, head_dim = heads_of(config)
    sizes = {  # what its linear layers take in
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_attention_heads * head_dim": config.num_attention_heads * head_dim,
    }  # fmt: skip
    for name, size in sizes.items():
        if loadbit == "4" and size % NF4_BLOCK:
            raise UserError(
                "loadbit",
                f"4-bit weights need sizes that are multiples of {NF4_BLOCK}; this model's {name} is {size}",
                "use loadbit=8 or none, or another model (llama-110m)",
            )
