"""The experiments of configs/experiment/: their names, their order, and the runs of each."""

from __future__ import annotations

import itertools

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ..compose import compose, sweep_of
from ..config import CONFIG_DIR, Config

LAST = 1000  # the priority of an experiment that has none


def experiments() -> tuple[str, ...]:
    """The experiments of ``make reproduce``: those whose YAML gives them a priority, in that order."""
    read = {path.stem: OmegaConf.load(path) for path in sorted((CONFIG_DIR / "experiment").glob("*.yaml"))}
    places = {name: content.priority["any"] for name, content in read.items() if "priority" in content}
    return tuple(sorted(places, key=lambda name: int(places[name])))


def priority_of(config: Config) -> int:
    """The priority of a comparison, as its experiment's YAML gives it for the model, or else for any model."""
    return config.priority.get(config.model.name, config.priority.get("any", LAST))


def sweep(experiment: str, overrides: list[str]) -> list[list[str]]:
    """The overrides of each run of an experiment: its own, and one combination of what it sweeps."""
    chosen = [f"experiment={experiment}", *overrides]
    axes = sweep_of(chosen)
    parsed = [OverridesParser.create().parse_override(f"{key}={choices}") for key, choices in axes.items()]
    values = [
        [f"{axis.key_or_group}={value}" for value in axis.sweep_string_iterator()] if axis.is_sweep_override() else
        [str(axis.input_line)]
        for axis in parsed
    ]  # fmt: skip
    return [[*chosen, *combination] for combination in itertools.product(*values)]


def small(runs: list[list[str]]) -> list[list[str]]:
    """An experiment's first comparison on a few prompts, to try the whole path; on a GPU with a small model.

    A GPU is opened by a process of its own for each, as in earnest. On a CPU starting those would take longest.
    """
    first = [one for one in runs[0] if not one.startswith("model=") or "scale=cpu" in runs[0]]
    if compose(first).searches_rate:
        first = [*first, "rate=50"]
    few = ["num_prompts=8", "batch_size=4", "repeats=2", "verify_batches=1", "dataset.source=profile"]
    few += ["utilization_loop_s=0", "sampler_overhead_s=0"]
    where = ["isolate=false", "memory_limit_mb=null"] if "scale=cpu" in first else ["model=llama-110m"]
    named = {one.split("=")[0] for one in [*few, *where]}
    return [[*(one for one in first if one.split("=")[0] not in named), *few, *where]]
