"""What a run is: the settings, their meaning and their limits. Strings are checked here and nowhere else."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from src import places
from src.cli import UserError

CONFIG_DIR = places.CONFIGS

SERVING = ("continuous-batching", "vllm")
# By their files' names: a choice is checked without importing torch.
ADDED = tuple(sorted(file.stem.replace("_", "-") for file in (places.PACKAGE / "prefill" / "added").glob("[!_]*.py")))
METHODS = ("full-batching", "length-ordered", "prepacking", "dataset-prepacking", "padding-free", *SERVING, *ADDED)
REFERENCE = "reference"
QUIRKS = {
    "no-sync": "the clock is read without waiting for the device",
    "last-run-only": "memory and utilization of the last repeat alone are kept",
    "divide-twice": "time per prompt is divided by the number of repeats once too often",
    "own-shuffle": "each method gets batches from a shuffle of its own",
    "left-out-token": "prepacking leaves each prompt's last token out of a prefill that the baseline computes whole",
    "untimed-packing": "packing is left out of the time",
    "no-failure-rows": "a method that fails leaves a printed line and no row",
    "sort-by-characters": "length-ordered sorts by characters instead of tokens",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "metric": ("prefill", "ttft"),
    "protocol": ("paper", "modern"),
    "packing": ("ffd", "binpacking", "optimal"),
    "forward": ("fused", "transformers"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "loadbit": ("none", "4", "8"),
    "model.weights": ("auto", "hub", "random"),
    "dataset.source": ("auto", "hub", "file", "profile"),
    "scale": ("auto", "cpu", "gpu"),
    "device_map": ("auto", "sequential"),
}


@dataclass
class ModelConfig:
    """Where a causal language model comes from: a hub id or folder, or its published shape and random weights."""

    name: str = MISSING
    path: str | None = None  # hub id or local folder
    revision: str | None = None  # hub commit, tag or branch; the commit it resolves to is recorded
    weights: str = "auto"  # auto: hub, else random with a warning; hub: never falls back; random: no download
    architecture: dict[str, Any] | None = None  # transformers' config fields, model_type among them


@dataclass
class DatasetConfig:
    """Where prompts come from: a hub dataset, a local file, or a real dataset's token-length profile."""

    name: str = MISSING
    source: str = "auto"  # auto: hub, else the profile with a warning; hub: never falls back; file, profile: no network
    hub_id: str | None = None
    hub_config: str | None = None
    data_dir: str | None = None
    split: str = "test"
    revision: str | None = None
    text_field: str = "text"
    path: str | None = None  # local jsonl, json, csv, parquet or txt
    profile: str | None = None  # name of a shipped length profile, or path of a token_length,count CSV
    max_tokens: int | None = None  # cut prompts to this many tokens


@dataclass
class Config:
    """One configuration of ``python -m src.run``; configs/config.yaml says what each setting does."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    method: str = "prepacking"
    methods: list[str] | None = None
    metric: str = "prefill"
    protocol: str = "modern"
    packing: str = "ffd"
    forward: str = "fused"
    max_tokens_per_forward: int | None = 32768
    ideal: bool = True
    batch_size: int = 64
    num_prompts: int = 1000
    repeats: int = 5
    precision: float | None = None
    max_repeats: int = 30
    noise_floor: float = 0.01
    warmup: int = 1
    seed: int = 0
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    loadbit: str = "none"
    verify_batches: int = 2
    generate_tokens: int = 0
    sampler_interval_s: float = 0.1
    utilization_loop_s: float = 6.0
    sampler_overhead_s: float = 1.6
    results_dir: str | None = None
    quirks: list[str] = field(default_factory=list)
    rerun: bool = False
    isolate: bool = True
    timeout_s: float | None = None
    memory_limit_mb: int | None = None
    scale: str = "auto"
    priority: dict[str, int] = field(default_factory=dict)

    @property
    def compared_methods(self) -> tuple[str, ...]:
        """The methods that this run measures side by side."""
        return tuple(self.methods) if self.methods else (self.method,)


def register_schemas() -> None:
    """Tell Hydra the dataclasses, so that unknown keys and wrong types are rejected when a YAML is read."""
    from hydra.core.config_store import ConfigStore

    OmegaConf.register_new_resolver("scratch", _scratch, replace=True)
    OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
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


def compose(overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """Compose configs/config.yaml with ``overrides``, outside of a Hydra application.

    Returns:
        The validated configuration, and the sweep an experiment file asks for (``{"metric": "prefill,ttft"}``).

    Raises:
        HydraException, OmegaConfBaseException, UserError: bad input (``cli.guarded`` turns each into one line).
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = hydra_compose("config", list(overrides), return_hydra_config=True)
        sweep = {str(key): str(value) for key, value in (composed.hydra.sweeper.params or {}).items()}
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return typed(composed), sweep


def typed(composed: Any) -> Config:
    """Turn Hydra's composed config into the checked dataclass.

    Raises:
        UserError: a value outside its choices or limits, naming the setting.
    """
    _check_keys(composed)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed))
    assert isinstance(config, Config)
    _name_own_model(config.model)
    _name_own_dataset(config.dataset)
    check(config)
    return config


def _check_keys(composed: Any) -> None:
    """Hydra's ``+key=value`` adds keys, and a merge passes over those that the dataclasses lack: here none is."""
    for prefix, schema in (("", Config), ("model.", ModelConfig), ("dataset.", DatasetConfig)):
        given = composed.get(prefix[:-1]) if prefix else composed
        known = {known.name for known in fields(schema)}
        for key in map(str, given or ()):
            if key not in known:
                raise UserError(
                    f"{prefix}{key}", "there is no such setting", "`python -m src.run --help` lists them all"
                )


def _name_own_model(model: ModelConfig) -> None:
    """A model.path other than the chosen YAML's is another model, with a name of its own.

    So no row bears a shipped name for another one's weights, and random weights of the shipped shape never stand in
    for it.
    """
    shipped = _shipped("model", model.name)
    if shipped and model.path and shipped.get("path") != model.path:
        model.name, model.architecture = _own_name("model", model.path), None
    elif shipped and model.architecture != shipped.get("architecture"):
        model.name = f"own-{model.name}"


# What says which prompts a dataset is. Cutting them (max_tokens) leaves it the same dataset, and a row says so.
DATA = ("hub_id", "hub_config", "data_dir", "split", "text_field", "path", "profile")


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
        dataset.source = "profile"  # it was not given as what the shipped dataset falls back to
    # What the source does not read changes no prompt.
    read = {"file": {"path", "text_field"}, "profile": {"profile"}}.get(dataset.source, set(DATA) - {"path", "profile"})
    if not changed & read:
        return
    named_by = {"file": dataset.path, "profile": dataset.profile}.get(dataset.source, dataset.hub_id)
    other = changed & {"path", "profile", "hub_id"} & read
    dataset.name = _own_name("dataset", str(named_by)) if other else f"own-{dataset.name}"
    if dataset.source != "profile" and dataset.profile == shipped.get("profile"):
        dataset.profile = None


def _shipped(group: str, name: str) -> dict[str, Any] | None:
    file = CONFIG_DIR / group / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else None  # type: ignore[return-value]


def _own_name(group: str, path: str) -> str:
    """The last part of a path as a name that no shipped one has."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name).strip("-.") or "own"
    taken = any((CONFIG_DIR / group / f"{each}.yaml").is_file() for each in (name, Path(name).stem))
    return f"own-{name}" if taken else name


def check(config: Config) -> None:
    """Check every setting that can be judged without a model, data or device.

    Raises:
        UserError: the first setting that is wrong.
    """
    chosen = {
        "metric": config.metric,
        "protocol": config.protocol,
        "packing": config.packing,
        "forward": config.forward,
        "dtype": config.dtype,
        "loadbit": config.loadbit,
        "model.weights": config.model.weights,
        "dataset.source": config.dataset.source,
        "scale": config.scale,
    }
    for setting, value in chosen.items():
        _one_of(setting, value, CHOICES[setting])
    _one_of("method", config.method, METHODS)
    if config.methods is not None:
        if not config.methods:
            raise UserError("methods", "the list is empty", f"name at least one of {', '.join(METHODS)}")
        for method in config.methods:
            _one_of("methods", method, METHODS)
        if len(set(config.methods)) < len(config.methods):
            raise UserError("methods", "a method is named twice", "name each once")
    if config.protocol == "paper" and (served := set(config.compared_methods) & set(SERVING)):
        raise UserError(
            "protocol", f"{sorted(served)[0]} does not do what the authors' code does", "use protocol=modern"
        )
    if config.loadbit != "none" and "vllm" in config.compared_methods:
        raise UserError("loadbit", "vllm is measured with plain weights only", "use loadbit=none, or leave vllm out")
    if config.device_map is not None:
        _check_split(config)
    for quirk in config.quirks:
        _one_of("quirks", quirk, (REFERENCE, *QUIRKS))
    for setting, number, least in (
        ("batch_size", config.batch_size, 1),
        ("max_tokens_per_forward", config.max_tokens_per_forward, 1),
        ("num_prompts", config.num_prompts, 1),
        ("repeats", config.repeats, 1),
        ("max_repeats", config.max_repeats, 1),
        ("warmup", config.warmup, 0),
        ("seed", config.seed, 0),
        ("verify_batches", config.verify_batches, 1),
        ("generate_tokens", config.generate_tokens, 0),
        ("dataset.max_tokens", config.dataset.max_tokens, 1),
        ("memory_limit_mb", config.memory_limit_mb, 1),
    ):
        if number is not None and number < least:
            raise UserError(setting, f"{number} is too small", f"give a whole number of {least} or more")
    if config.timeout_s is not None and not config.timeout_s > 0:
        raise UserError("timeout_s", f"{config.timeout_s:g} s", "give seconds above 0, or null for no limit")
    if not config.isolate and (config.timeout_s or config.memory_limit_mb):
        setting = "timeout_s" if config.timeout_s else "memory_limit_mb"
        raise UserError(setting, "needs a process of its own", "leave out isolate=false")
    if config.precision is not None and not 0 < config.precision < 1:
        raise UserError("precision", f"{config.precision}", "give a share between 0 and 1: 0.02 for 2 %, or null")
    if config.precision is not None and config.max_repeats < config.repeats:
        raise UserError(
            "max_repeats",
            f"{config.max_repeats} is fewer than repeats={config.repeats}",
            "raise max_repeats or lower repeats",
        )
    if not 0 <= config.noise_floor < 1:
        raise UserError("noise_floor", f"{config.noise_floor}", "give a share from 0 to below 1: 0.01 for 1 %")
    if not 0.01 <= config.sampler_interval_s <= 10:
        raise UserError("sampler_interval_s", f"{config.sampler_interval_s} s", "give 0.01 to 10 seconds")
    for setting, seconds, most in (
        ("utilization_loop_s", config.utilization_loop_s, 600),
        ("sampler_overhead_s", config.sampler_overhead_s, 60),
    ):
        if not 0 <= seconds <= most:  # also refuses NaN
            raise UserError(setting, f"{seconds} s", f"give 0 (off) to {most} seconds")
    if config.batch_size > config.num_prompts:
        raise UserError(
            "batch_size",
            f"{config.batch_size} is larger than the data (num_prompts={config.num_prompts})",
            "lower batch_size or raise num_prompts",
        )


def _check_split(config: Config) -> None:
    _one_of("device_map", str(config.device_map), CHOICES["device_map"])
    if served := set(config.compared_methods) & set(SERVING):
        raise UserError("device_map", f"{sorted(served)[0]} is measured on one device", "use null, or leave it out")
    if config.protocol == "modern" and config.forward == "fused":
        raise UserError("forward", "fused serves a model on one device", "use forward=transformers with device_map")


def _one_of(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(setting, f"unknown '{value}'", f"choose one of {', '.join(choices)}")


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain types, for records."""
    return asdict(config)


def config_hash(config: Config) -> str:
    """12 hex digits naming everything in the configuration that can change a measurement (not where it is written)."""
    content = as_dict(config)
    # What changes no sample; the method is named by the record itself.
    for key in ("results_dir", "rerun", "method", "isolate", "timeout_s", "noise_floor", "scale",
                "priority"):  # fmt: skip
        content.pop(key)
    content["methods"] = list(config.compared_methods)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
