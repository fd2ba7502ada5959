"""When prompts arrive: drawn from a process, or as a trace has it, stretched to a rate."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cli import UserError
from ..config import DatasetConfig
from . import files
from .sample import follow
from .sources import read_files

TRACES = Path(__file__).parent / "traces"
OF_PROFILE = {"azure-conv": "azure-conv-2023", "azure-code": "azure-code-2023"}  # lengths that are those of a trace

Floats = NDArray[np.float64]


def poisson(number: int, rate: float, rng: np.random.Generator) -> Floats:
    """Times of a Poisson process, float64 [number], ascending seconds: independent exponential gaps, mean 1 / rate."""
    return np.cumsum(rng.exponential(1 / rate, number))


def gamma(number: int, rate: float, burstiness: float, rng: np.random.Generator) -> Floats:
    """Times with independent gamma gaps of mean 1 / rate, float64 [number], ascending seconds.

    Args:
        burstiness: the shape of the gamma distribution, as vLLM's benchmark has it: 1 is Poisson, below it arrivals
            come in bursts, above it they are more even. The gaps' coefficient of variation is burstiness ** -0.5.
    """
    return np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), number))


def stretched(times_s: Floats, rate: float) -> Floats:
    """Times from 0 on, with their gaps in proportion, so that ``rate`` of them come a second on average."""
    moved = times_s - times_s[0]
    span_s = float(moved[-1])
    if not span_s > 0:
        raise UserError("trace", "all of its prompts arrive at the same moment", "use arrivals=all, or another trace")
    return np.asarray(moved * ((len(moved) - 1) / rate / span_s))


@functools.cache
def shipped(name: str) -> tuple[Floats, NDArray[np.int64]]:
    """Arrivals in seconds and prompt lengths in tokens, [n] each, of a trace that comes with the program."""
    table = np.loadtxt(TRACES / f"{name}.csv", delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1].astype(np.int64)


def names() -> list[str]:
    """The traces that come with the program."""
    return sorted(path.stem for path in TRACES.glob("*.csv"))


def trace_times(trace: str, number: int, rng: np.random.Generator) -> Floats:
    """Times of ``number`` requests that follow each other in a trace, float64 [number], seconds.

    Args:
        trace: one that comes with the program, or a file of requests in any form that ``dataset.path`` takes.

    Raises:
        UserError: there is no such trace, it has no times, too few, or goes backwards in time.
    """
    times_s = shipped(trace)[0] if trace in names() else _read(trace)
    if len(times_s) < number:
        problem = f"{trace} has {len(times_s):,} requests, and num_prompts={number:,}"
        fewer = f"lower num_prompts to {len(times_s):,}, or " if len(times_s) > 1 else ""
        raise UserError("trace", problem, f"{fewer}name a longer trace")
    return times_s[follow(len(times_s), number, rng).chosen]


def _read(path: str) -> Floats:
    if not Path(path).expanduser().is_file():
        folder = Path(path).expanduser().is_dir()
        problem = f"'{path}' is a folder" if folder else f"there is neither a shipped trace nor a file '{path}'"
        raise UserError("trace", problem, f"choose one of {', '.join(names())}, or name a file with times")
    try:
        found: list[Any] = [item.arrival_s for item in read_files(DatasetConfig("trace", path=path)).items]
    except UserError as error:
        fields = "its time (timestamp, arrival_s or arrival_time) and its text or prompt_tokens"
        remedy = f"give requests as dataset.path takes them, each with {fields}"
        raise UserError("trace", error.problem, remedy) from None
    if not found or None in found:
        known = ", ".join(("timestamp", "arrival_s", "arrival_time"))
        problem = f"'{files.named(path)}' does not say of every request when it came"
        raise UserError("trace", problem, f"give each a field {known}")
    times_s = np.array(found, dtype=np.float64)
    check_order(times_s, "trace")
    return times_s


def check_order(times_s: Floats, setting: str) -> None:
    """Refuse a trace that goes backwards in time, which is a sign that it is not what it is taken for.

    Raises:
        UserError: it does, with the first such request, or a time is no number.
    """
    if strange := np.flatnonzero(~np.isfinite(times_s)).tolist():
        raise UserError(setting, f"request {strange[0] + 1} comes at {times_s[strange[0]]:g} s", "give it a time")
    back = np.flatnonzero(np.diff(times_s) < 0)
    if len(back):
        number = int(back[0])
        problem = f"request {number + 2} comes {times_s[number] - times_s[number + 1]:g} s before the one before it"
        raise UserError(setting, f"{problem}: the trace goes backwards in time", "sort it by time")
