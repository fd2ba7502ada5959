"""What a run is: its settings, their choices, and the hash that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from . import places

CONFIG_DIR = places.CONFIGS

SERVING = ("continuous-batching", "vllm")
# Known by the names of their files, so that a choice is checked without importing them.
ADDED = tuple(sorted(file.stem.replace("_", "-") for file in places.ADDED_METHODS.glob("[!_]*.py")))
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
