"""Whether settings can be done: each against its choices and limits, and against the others."""

from __future__ import annotations

import operator

from . import config_under_load, places
from .authors import meant
from .cli import UserError
from .config import CHOICES, FAULT_NEEDS, FAULTS, METHODS, REFERENCE, SERVING, Config

MOST = 1_000_000_000  # of anything that is counted: beyond it lies a slip of the hand
MOST_SECONDS = 31_536_000  # a year


def check(config: Config) -> None:
    """Check every setting that can be judged without a model, data or device.

    Raises:
        UserError: the first setting that is wrong.
    """
    if config.clock == "predicted":
        remedy = f"ask for predictions with {places.command_line('advise')} rate=… slo_ms=…"
        raise UserError("clock", "a run measures, and predicted times are no measurement", remedy)
    for setting, choices in CHOICES.items():
        if setting not in ("method", "device_map"):  # each is judged with other settings, below
            _one_of(setting, operator.attrgetter(setting)(config), choices)
    _check_methods(config)
    if config.attention != "auto" and config.protocol == "paper":
        problem = f"{config.attention}, but protocol=paper attends as the authors' code does"
        raise UserError("attention", problem, "use protocol=modern, or leave it out")
    if config.numerics == "authors" and config.protocol != "paper":
        problem = f"authors, but protocol={config.protocol} does not do what their code does"
        raise UserError("numerics", problem, "add protocol=paper, or leave numerics out")
    if config.device_map is not None:
        _check_split(config)
    _check_faults(config)
    _check_numbers(config)
    config_under_load.check(config)
    if config.batch_size > config.num_prompts:
        raise UserError(
            "batch_size",
            f"{config.batch_size} is larger than the data (num_prompts={config.num_prompts})",
            "lower batch_size or raise num_prompts",
        )


def _check_methods(config: Config) -> None:
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
    if config.loadbit != "none" and "vllm" in config.compared_methods:
        raise UserError("loadbit", "vllm is measured with plain weights only", "use loadbit=none, or leave vllm out")


def _check_faults(config: Config) -> None:
    for fault in config.faults:
        _see_text("faults", fault)
        _one_of("faults", fault, (REFERENCE, *FAULTS))
        protocol, metric, why = FAULT_NEEDS.get(fault, (config.protocol, config.metric, ""))
        if (protocol, metric) != (config.protocol, config.metric):
            problem = f"{fault} has no effect with protocol={config.protocol} metric={config.metric} ({why})"
            raise UserError("faults", problem, f"use protocol={protocol} metric={metric}, or leave it out")


def _check_numbers(config: Config) -> None:
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
        if number is not None and number > MOST and setting != "seed":
            raise UserError(setting, f"{number} is too large", f"give a whole number of {MOST:,} at most")
    if config.seed >= 2**63:
        raise UserError("seed", f"{config.seed} is too large", "give a whole number below 2**63")
    if config.timeout_s is not None and not 0 < config.timeout_s <= MOST_SECONDS:
        remedy = f"give seconds above 0, {MOST_SECONDS:,} at most, or null for no limit"
        raise UserError("timeout_s", f"{config.timeout_s:g} s", remedy)
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


def _check_method(setting: str, name: str, protocol: str) -> None:
    """A method, or one with an attention kernel of its own: ``padding-free+flex``."""
    _see_text(setting, name)
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


def _see_text(setting: str, value: object) -> None:
    if not isinstance(value, str):
        raise UserError(setting, f"{value} is no name", "give names, with commas between them: [one,other]")


def _one_of(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = meant(setting, value)
        raise UserError(setting, f"unknown '{value}'", f"{hint}choose one of {', '.join(choices)}")
