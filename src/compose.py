"""Hydra's composition of settings into a checked ``Config``, and names for models and datasets of one's own."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from . import places
from .authors import meant
from .cli import UserError
from .config import CONFIG_DIR, Config, DatasetConfig, ModelConfig
from .config_checks import check

GROUPS = ("model", "dataset", "experiment")  # folders of configs/, whose files these settings name
NO_NAME = re.compile(r"[\[{].*|[+-]?(\d[\d._]*(e[+-]?\d+)?|inf|nan)|true|false", re.IGNORECASE | re.DOTALL)


def check_groups(overrides: Sequence[str]) -> None:
    """See that settings that name a file of configs/ hold a name, and that none is set that those files alone hold.

    Raises:
        UserError: otherwise, where Hydra would end in a traceback.
    """
    for override in overrides:
        name, equals, value = override.partition("=")
        if name.lstrip("+").startswith("dataset.authors"):
            problem = "is what sample=authors sets, and stands in the datasets' own files"
            raise UserError("dataset.authors", problem, "set dataset.split= and dataset.data_dir= themselves")
        if equals and name in GROUPS and NO_NAME.fullmatch(value):
            known = ", ".join(sorted(path.stem for path in (CONFIG_DIR / name).glob("*.yaml")))
            raise UserError(name, f"'{value}' is no name", f"choose one of {known}")


def register_schemas() -> None:
    """Tell Hydra the dataclasses, so that unknown keys and wrong types are rejected when a YAML is read."""
    OmegaConf.register_new_resolver("scratch", _scratch, replace=True)
    OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
    OmegaConf.register_new_resolver("where_installed", where_installed, replace=True)
    OmegaConf.register_new_resolver("command_line", places.command_line, replace=True)
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    store.store(group="model", name="model_schema", node=ModelConfig)
    store.store(group="dataset", name="dataset_schema", node=DatasetConfig)


@functools.cache
def _scratch() -> str:
    """A folder that is gone when the program ends."""
    folder = tempfile.mkdtemp(prefix="prepack-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _by_scale(gpu: Any, cpu: Any, *, _root_: Any) -> Any:
    """``${by_scale:for a GPU, for a CPU}``: an experiment has both sizes in one file."""
    scale, device = str(_root_.get("scale", "auto")), str(_root_.get("device", "auto"))
    if scale == "auto":
        has_gpu = any(Path("/dev").glob("nvidia[0-9]*")) if device == "auto" else device.startswith("cuda")
        scale = "gpu" if has_gpu else "cpu"
    return gpu if scale == "gpu" else cpu


def where_installed(package: str, here: Any, elsewhere: Any) -> Any:
    """``${where_installed:package,value,other value}``: by whether a package that holds a GGUF file can be used."""
    return here if all(importlib.util.find_spec(name) for name in (package, "gguf")) else elsewhere


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose configs/config.yaml with ``overrides``, outside of a Hydra application, and check the outcome.

    Raises:
        HydraException, OmegaConfBaseException, UserError: bad input (``cli.guarded`` turns each into one line).
    """
    return typed(composed(overrides))


def composed(overrides: Sequence[str] = ()) -> Any:
    """The same, before it is typed and checked: settings in which one may still refer to another."""
    found = _by_hydra(overrides)
    OmegaConf.set_struct(found, False)
    del found["hydra"]
    return found


def sweep_of(overrides: Sequence[str]) -> dict[str, str]:
    """What an experiment's file asks to be swept (``{"metric": "prefill,ttft"}``).

    Nothing else of it is checked: its settings may go together only once a value of the sweep is chosen.
    """
    return {str(key): str(value) for key, value in (_by_hydra(overrides).hydra.sweeper.params or {}).items()}


def _by_hydra(overrides: Sequence[str]) -> Any:
    register_schemas()
    check_groups(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return hydra_compose("config", list(overrides), return_hydra_config=True)


def typed(found: Any) -> Config:
    """Turn Hydra's composed config into the checked dataclass.

    Raises:
        UserError: a value outside its choices or limits, naming the setting.
    """
    _check_keys(found)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), found))
    assert isinstance(config, Config)
    _name_own_model(config.model)
    _take_paths(config.dataset)
    _name_own_dataset(config.dataset)
    if config.sample == "authors":  # only now, for these prompts are the paper's and bear the shipped name
        for name, value in (config.dataset.authors or {}).items():
            setattr(config.dataset, name, value)
    check(config)
    return config


def _check_keys(found: Any) -> None:
    """Hydra's ``+key=value`` adds keys, and a merge passes over those that the dataclasses lack: here none is."""
    for prefix, schema in (("", Config), ("model.", ModelConfig), ("dataset.", DatasetConfig)):
        given = found.get(prefix[:-1]) if prefix else found
        known = {known.name for known in fields(schema)}
        for key in map(str, given or ()):
            if key not in known:
                raise UserError(
                    f"{prefix}{key}",
                    "there is no such setting",
                    f"{meant(key)}`{places.command_line('run')} --help` lists them all",
                )


def _name_own_model(model: ModelConfig) -> None:
    """A model.path other than the chosen YAML's is another model, with a name of its own.

    So no row bears a shipped name for another one's weights, and random weights of the shipped shape never stand in
    for it.
    """
    shipped = _shipped("model", model.name)
    if shipped and model.path and shipped.get("path") != model.path:
        model.name, model.architecture = _own_name("model", model.path), None
        if model.weights == shipped.get("weights") == "package":
            model.weights = "auto"  # those of the path
    elif shipped and model.weights == "package" and model.package and shipped.get("package") != model.package:
        model.name, model.architecture = _own_name("model", model.package), None
    elif shipped and model.architecture != shipped.get("architecture"):
        model.name = f"own-{model.name}"


def _take_paths(dataset: DatasetConfig) -> None:
    """Check what names files, and keep standard input, which can be read only once, in a file of this program's.

    Raises:
        UserError: neither a path nor a list of paths; or standard input is a terminal or empty.
    """
    path = dataset.path
    named = path if isinstance(path, list) else [path]
    if path is not None and not (named and all(isinstance(each, str) for each in named)):
        raise UserError("dataset.path", f"{path}", "give a path, a pattern, a list of either, or - for standard input")
    if path == "-":
        dataset.path = _standard_input()


@functools.cache
def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("dataset.path", "- is standard input, which is a terminal", "pipe prompts into it")
    file = Path(_scratch()) / "standard-input"
    with file.open("wb") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
    return str(file)


# Settings that make a dataset another one. Cutting its prompts (max_tokens) does not; the row says that they were cut.
DATA = ("hub_id", "hub_config", "data_dir", "split", "text_field", "path", "turns", "profile", "shipped")


def _name_own_dataset(dataset: DatasetConfig) -> None:
    """Prompts other than the chosen YAML's, whichever way they come in, have a name of their own.

    So no row bears a shipped name for other prompts, which would be judged by what the paper claims on those, and the
    shipped length profile never stands in for them.

    Raises:
        UserError: a file is named that is not read.
    """
    shipped = _shipped("dataset", dataset.name)
    if not shipped:
        return
    default = DatasetConfig()
    changed = {name for name in DATA if getattr(dataset, name) != shipped.get(name, getattr(default, name))}
    if "path" in changed and dataset.source in ("auto", shipped.get("source")):
        dataset.source = "file"
    elif "path" in changed and dataset.source != "file":
        problem = f"a file is named, but dataset.source={dataset.source} reads none"
        raise UserError("dataset.path", problem, "add dataset.source=file, or leave the path out")
    elif dataset.source == "auto" and "profile" in changed and "hub_id" not in changed:
        dataset.source = "profile"  # the profile was given for its own sake, not as the fallback of the shipped dataset
    # Settings that the source does not read change no prompt.
    read = {"file": {"path", "text_field", "turns"}, "profile": {"profile"}, "shipped": {"shipped", "text_field"}}.get(
        dataset.source, set(DATA) - {"path", "profile", "shipped"}
    )
    if not changed & read:
        return
    path = dataset.path if isinstance(dataset.path, str) or not dataset.path else dataset.path[0]
    named_by = {"file": path, "profile": dataset.profile, "shipped": dataset.shipped}.get(
        dataset.source, dataset.hub_id
    )
    other = changed & {"path", "profile", "shipped", "hub_id"} & read
    dataset.name = _own_name("dataset", str(named_by)) if other else f"own-{dataset.name}"
    for instead in ("profile", "shipped"):  # what comes with the program is no stand-in for other prompts
        if dataset.source != instead and getattr(dataset, instead) == shipped.get(instead):
            setattr(dataset, instead, None)


@functools.cache
def _shipped(group: str, name: str) -> dict[str, Any] | None:
    file = CONFIG_DIR / group / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else None  # type: ignore[return-value]


def _own_name(group: str, path: str) -> str:
    """The last part of a path as a name that no shipped one has."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name).strip("-.") or "own"
    taken = any((CONFIG_DIR / group / f"{each}.yaml").is_file() for each in (name, Path(name).stem))
    return f"own-{name}" if taken else name
