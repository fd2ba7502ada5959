"""What a run is: the settings, their meaning and their limits. Strings are checked here and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from . import config_under_load, places
from .authors import meant
from .cli import UserError

CONFIG_DIR = places.CONFIGS

SERVING = ("continuous-batching", "vllm")
# Known by the names of their files, so that a choice is checked without importing them.
ADDED = tuple(
    sorted(file.stem.replace("_", "-") for file in (places.PACKAGE / "prefilling" / "added").glob("[!_]*.py"))
)
POLICIES = tuple(
    sorted(file.stem.replace("_", "-") for file in (places.PACKAGE / "queueing" / "policies").glob("[!_]*.py"))
)
METHODS = ("full-batching", "length-ordered", "prepacking", "dataset-prepacking", "padding-free", *SERVING, *ADDED)
REFERENCE = "reference"
FAULTS = {
    "no-sync": "the clock is read without waiting for the device",
    "last-run-only": "memory and utilization of the last repeat alone are kept",
    "divide-twice": "time per prompt is divided by the number of repeats once too often",
    "own-shuffle": "each method shuffles anew in every repeat, so that no two of them prefill the same batches",
    "left-out-token": "prepacking leaves each prompt's last token out of a prefill that the baseline computes whole",
    "untimed-packing": "packing of the whole dataset is left out of the time",
    "no-failure-rows": "a method that fails leaves a printed line and no row",
    "sort-by-characters": "length-ordered sorts by characters instead of tokens",
    "keeps-last-batch": "logits and KV of the batch before stay in memory while the next one is prefilled",
}
# Faults that belong to one protocol and metric: what the authors' code does by itself, or cannot do, elsewhere.
FAULT_NEEDS = {
    "left-out-token": ("modern", "prefill", "protocol=paper leaves it out of a prefill by itself"),
    "keeps-last-batch": ("paper", "prefill", "the authors' code keeps nothing else"),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "metric": ("prefill", "ttft"),
    "protocol": ("paper", "modern"),
    "numerics": ("own", "authors"),
    "sample": ("own", "authors"),
    "packing": ("ffd", "binpacking", "optimal"),
    "forward": ("fused", "compiled", "graphs", "transformers"),
    "attention": ("auto", "segments", "native", "dense", "varlen", "flex", "flash"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "loadbit": ("none", "4", "8"),
    "model.weights": ("auto", "hub", "package", "random"),
    "dataset.source": ("auto", "hub", "file", "shipped", "profile"),
    "dataset.turns": ("all", "first", "last"),
    "scale": ("auto", "cpu", "gpu"),
    "device_map": ("auto", "sequential"),
    "arrivals": ("all", "poisson", "gamma", "trace"),
    "policy": POLICIES,
    "clock": ("virtual", "real"),
}


@dataclass
class ModelConfig:
    """Where a causal language model comes from: a hub id, folder or file, or its published shape and random weights."""

    name: str = MISSING
    path: str | None = None  # hub id, local folder or local GGUF file
    package: str | None = None  # installed Python package that holds the weights as a GGUF file
    revision: str | None = None  # hub commit, tag or branch; the commit it resolves to is recorded
    weights: str = "auto"  # auto: hub, else random with a warning; hub, package: never fall back; random: no download
    architecture: dict[str, Any] | None = None  # transformers' config fields, model_type among them


@dataclass
class DatasetConfig:
    """Where prompts come from: a hub dataset, local files, shipped texts, or a real dataset's token-length profile."""

    name: str = MISSING
    source: str = "auto"  # auto: hub, else what is shipped, with a note; hub: never falls back; others: no network
    hub_id: str | None = None
    hub_config: str | None = None
    data_dir: str | None = None
    split: str = "test"
    revision: str | None = None
    text_field: str | None = None  # the field that holds prompts; null: found by its name
    path: Any = None  # a local file, a pattern, a list of either, or - for standard input
    turns: str = "all"  # of a conversation: all user turns with what came before each; the first; the last
    skip_bad: bool = False  # pass over records of a file that hold no prompt, and say how many
    shipped: str | None = None  # real prompts that come with the program
    profile: str | None = None  # name of a shipped length profile, or path of a token_length,count CSV
    max_tokens: int | None = None  # cut prompts to this many tokens
    authors: dict[str, Any] | None = None  # what sample=authors sets: the split and folder that the authors draw from


# What a setting has to do with a measurement. One that says nothing here changes what is measured: its value stands in
# the row's column of that name or, where there is none, in ``other_settings``, and keeps measurements apart.
NAMED: dict[str, Any] = {"role": "other columns of the row tell what it came to"}
CARE: dict[str, Any] = {"role": "how often or how carefully it is measured: measured anew, and compared all the same"}
FREE: dict[str, Any] = {"role": "changes no sample: what is recorded already is not measured again for it"}


@dataclass
class Config:
    """One configuration; configs/config.yaml says what each setting does."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata=NAMED)
    dataset: DatasetConfig = field(default_factory=DatasetConfig, metadata=NAMED)
    method: str = field(default="prepacking", metadata=NAMED)
    methods: list[str] | None = field(default=None, metadata=NAMED)
    metric: str = "prefill"
    protocol: str = "modern"
    numerics: str = "own"
    packing: str = "ffd"
    forward: str = "fused"
    attention: str = field(default="auto", metadata=NAMED)
    max_tokens_per_forward: int | None = 32768
    ideal: bool = field(default=True, metadata=CARE)
    batch_size: int = 64
    num_prompts: int = 1000
    sample: str = "own"
    repeats: int = field(default=5, metadata=CARE)
    precision: float | None = field(default=None, metadata=CARE)
    max_repeats: int = field(default=30, metadata=CARE)
    noise_floor: float = field(default=0.01, metadata=FREE)
    warmup: int = field(default=1, metadata=CARE)
    arrivals: str = field(default="all", metadata=NAMED)
    rate: float | None = field(default=None, metadata=NAMED)
    burstiness: float = field(default=0.25, metadata=NAMED)
    trace: str | None = field(default=None, metadata=NAMED)
    policy: str = field(default="fifo", metadata=NAMED)
    token_budget: int = field(default=8192, metadata=NAMED)
    lookahead: int | None = field(default=None, metadata=NAMED)
    buckets: Any = field(default=4, metadata=NAMED)
    ageing: float = field(default=1000.0, metadata=NAMED)
    clock: str = field(default="virtual", metadata=NAMED)
    slo_ms: float | None = None
    seed: int = field(default=0, metadata=NAMED)
    device: str = field(default="auto", metadata=NAMED)
    device_map: str | None = field(default=None, metadata=NAMED)
    dtype: str = "auto"
    loadbit: str = "none"
    verify_batches: int = field(default=2, metadata=CARE)
    generate_tokens: int = field(default=0, metadata=CARE)
    invariance: bool = field(default=False, metadata=CARE)
    sampler_interval_s: float = field(default=0.1, metadata=CARE)
    utilization_loop_s: float = field(default=6.0, metadata=CARE)
    sampler_overhead_s: float = field(default=1.6, metadata=CARE)
    results_dir: str | None = field(default=None, metadata=FREE)
    faults: list[str] = field(default_factory=list)
    rerun: bool = field(default=False, metadata=FREE)
    isolate: bool = field(default=True, metadata=FREE)
    timeout_s: float | None = field(default=None, metadata=FREE)
    memory_limit_mb: int | None = None
    scale: str = field(default="auto", metadata=FREE)
    priority: dict[str, int] = field(default_factory=dict, metadata=FREE)
    experiment: str | None = field(default=None, metadata=NAMED)

    @property
    def compared_methods(self) -> tuple[str, ...]:
        """The methods that this run measures side by side."""
        return tuple(self.methods) if self.methods else (self.method,)

    @property
    def under_load(self) -> bool:
        """Whether prompts arrive one by one, and wait."""
        return self.arrivals != "all"

    @property
    def searches_rate(self) -> bool:
        """Whether the largest rate within the objective is looked for."""
        return self.under_load and self.rate is None


def check(config: Config) -> None:
    """Check every setting that can be judged without a model, data or device.

    Raises:
        UserError: the first setting that is wrong.
    """
    chosen = {
        "metric": config.metric,
        "protocol": config.protocol,
        "numerics": config.numerics,
        "sample": config.sample,
        "packing": config.packing,
        "forward": config.forward,
        "attention": config.attention,
        "dtype": config.dtype,
        "loadbit": config.loadbit,
        "model.weights": config.model.weights,
        "dataset.source": config.dataset.source,
        "dataset.turns": config.dataset.turns,
        "scale": config.scale,
        "arrivals": config.arrivals,
        "policy": config.policy,
        "clock": config.clock,
    }
    if config.clock == "predicted":
        remedy = f"ask for predictions with {places.command_line('advise')} rate=… slo_ms=…"
        raise UserError("clock", "a run measures, and predicted times are no measurement", remedy)
    for setting, value in chosen.items():
        _one_of(setting, value, CHOICES[setting])
    _check_method("method", config.method, config.protocol)
    if config.methods is not None:
        if not config.methods:
            raise UserError("methods", "the list is empty", f"name at least one of {', '.join(METHODS)}")
        for method in config.methods:
            _check_method("methods", method, config.protocol)
        if len(set(config.methods)) < len(config.methods):
            raise UserError("methods", "a method is named twice", "name each once")
    if config.protocol == "paper" and (served := set(config.compared_methods) & set(SERVING)):
        raise UserError(
            "protocol", f"{sorted(served)[0]} does not do what the authors' code does", "use protocol=modern"
        )
    if config.attention != "auto" and config.protocol == "paper":
        problem = f"{config.attention}, but protocol=paper attends as the authors' code does"
        raise UserError("attention", problem, "use protocol=modern, or leave it out")
    if config.numerics == "authors" and config.protocol != "paper":
        problem = f"authors, but protocol={config.protocol} does not do what their code does"
        raise UserError("numerics", problem, "add protocol=paper, or leave numerics out")
    if config.loadbit != "none" and "vllm" in config.compared_methods:
        raise UserError("loadbit", "vllm is measured with plain weights only", "use loadbit=none, or leave vllm out")
    if config.device_map is not None:
        _check_split(config)
    for fault in config.faults:
        _one_of("faults", fault, (REFERENCE, *FAULTS))
        protocol, metric, why = FAULT_NEEDS.get(fault, (config.protocol, config.metric, ""))
        if (protocol, metric) != (config.protocol, config.metric):
            problem = f"{fault} has no effect with protocol={config.protocol} metric={config.metric} ({why})"
            raise UserError("faults", problem, f"use protocol={protocol} metric={metric}, or leave it out")
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
    if config.seed >= 2**63:
        raise UserError("seed", f"{config.seed} is too large", "give a whole number below 2**63")
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
    config_under_load.check(config, Config(), SERVING)
    if config.batch_size > config.num_prompts:
        raise UserError(
            "batch_size",
            f"{config.batch_size} is larger than the data (num_prompts={config.num_prompts})",
            "lower batch_size or raise num_prompts",
        )


def _check_method(setting: str, name: str, protocol: str) -> None:
    """A method, or one with an attention kernel of its own: ``padding-free+flex``."""
    method, plus, kernel = name.partition("+")
    _one_of(setting, method, METHODS)
    if not plus:
        return
    kernels = CHOICES["attention"][1:]
    if kernel not in kernels:
        problem = f"{name}: unknown attention kernel '{kernel}'"
        raise UserError(setting, problem, f"choose one of {', '.join(kernels)} after the +")
    if method in SERVING:
        raise UserError(setting, f"{method} attends by a kernel of its own choice", f"leave out +{kernel}")
    if protocol == "paper":
        problem = f"{name}, but protocol=paper attends as the authors' code does"
        raise UserError(setting, problem, f"use protocol=modern, or leave out +{kernel}")


def _check_split(config: Config) -> None:
    _one_of("device_map", str(config.device_map), CHOICES["device_map"])
    if served := set(config.compared_methods) & set(SERVING):
        raise UserError("device_map", f"{sorted(served)[0]} is measured on one device", "use null, or leave it out")
    if config.protocol == "modern" and config.forward != "transformers":
        raise UserError(
            "forward", f"{config.forward} serves a model on one device", "use forward=transformers with device_map"
        )


def _one_of(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = meant(setting, value)
        raise UserError(setting, f"unknown '{value}'", f"{hint}choose one of {', '.join(choices)}")


def dtype_name(asked: str, on_gpu: bool, numerics: str = "own") -> str:
    """The type of weights and activations: bfloat16 on a GPU and float32 on a CPU, unless asked otherwise.

    The authors' numerics are float16 on a GPU. On a CPU they too are float32, as float16 is emulated there.
    """
    of_gpu = "float16" if numerics == "authors" else "bfloat16"
    return asked if asked != "auto" else of_gpu if on_gpu else "float32"


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain types, for records."""
    return asdict(config)


def config_hash(config: Config) -> str:
    """12 hex digits naming everything in the configuration that can change a sample (not where it is written)."""
    content = as_dict(config)
    for each in fields(config):
        if each.metadata == FREE:
            content.pop(each.name)
    del content["method"]  # the record itself names it
    content["methods"] = list(config.compared_methods)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def other_settings(config: Config, columns: Collection[str]) -> str | None:
    """``name=value`` of each setting that changes what is measured, is not the default, and has no column of its own.

    So a setting that is added keeps its records apart from others before anyone gives it a column.
    """
    default = type(config)()
    told = [
        f"{each.name}={getattr(config, each.name)}"
        for each in fields(config)
        if not each.metadata and each.name not in columns and getattr(config, each.name) != getattr(default, each.name)
    ]
    return " ".join(told) or None
