"""A minute's calibration of the cost model: the real methods, timed on synthetic batches of many mixes of lengths.

Sizes come from the time there is: a probe finds what a token costs, and all mixes are scaled so that running each by
each method, once to warm up and then again and again in rounds, takes about as long as asked, on a slow machine and a
fast one. Where the model's positions or the memory end the growth first, it is over sooner.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .. import provenance
from ..cli import UserError, warn
from ..measure import machine
from ..measure.plan import Plan
from ..measure.process import BUSY, CpuTimes, CpuUse, available_mb
from ..measure.timer import PhaseTimer
from ..measure.work import ForwardSettings, memory_bytes, work_of
from ..prefilling.engines import make_engine
from ..prefilling.method import Engine, Method, TokenIds
from ..prefilling.methods import BASELINE, METHODS
from ..prefilling.packing import Bins
from ..prefilling.shape import Shape
from ..records import store as records
from .cost import CalibrationBatch

CALIBRATED = ("full-batching", "prepacking", "padding-free")
SHORTEST_PROMPT = 4
FEWEST_MIXES = 5
MOST_ROUNDS = 7
SHARE_OF_MEMORY = 0.5
SHARE_TO_PROBE = 0.1
PASSES = 4.4  # passes over all batches that must fit: one to warm up, three to time, and a margin
OVERTIME = 1.5  # the first timed round may take this many times as long as asked
PROBE_TOKENS = 4096


@dataclass(frozen=True)
class Mix:
    """A batch to calibrate on: ``kind`` of lengths, k prompts, the longest of ``longest`` tokens at scale 1."""

    kind: str
    k: int
    longest: int

    def lengths(self, scale: float, most: int) -> list[int]:
        """Tokens of each prompt: quantiles of the kind's distribution, so that a mix is the same whatever the scale."""
        at = (np.arange(self.k) + 0.5) / self.k
        share = {
            "equal": np.ones(self.k),
            "uniform": at / at[-1],
            "skewed": at**3 / at[-1] ** 3,  # many short, few long, as questions and chats are
            "one-long": np.where(np.arange(self.k) == self.k - 1, 1.0, 0.1),
        }[self.kind]
        longest = min(self.longest * scale, most)
        return [max(SHORTEST_PROMPT, round(float(part) * longest)) for part in share]


# Few and many, short and long, equal and unequal prompts, so that each kind of work dominates some batch.
MIXES = (
    Mix("equal", 1, 2048), Mix("equal", 4, 1024), Mix("equal", 16, 128), Mix("equal", 64, 16),
    Mix("uniform", 4, 512), Mix("uniform", 16, 256), Mix("uniform", 64, 64),
    Mix("skewed", 8, 512), Mix("skewed", 16, 768), Mix("skewed", 32, 256), Mix("skewed", 64, 256),
    Mix("one-long", 4, 1024), Mix("one-long", 32, 256),
    Mix("skewed", 8, 64), Mix("uniform", 4, 32),
)  # fmt: skip


class Bench:
    """Carries batches by any method of the ``modern`` protocol, and times them."""

    def __init__(self, model: PreTrainedModel, plan: Plan) -> None:
        self._model, self._options, self._timer = model, replace(plan.options, metric="ttft"), PhaseTimer(plan.device)
        self._engines: dict[str, Engine] = {}

    def seconds(self, method: Method, prompts: Sequence[TokenIds], bins: Bins | None = None) -> float:
        """Time from a batch of prompts to the first new token of each, seconds."""
        if method.name not in self._engines:
            self._engines[method.name] = make_engine(self._model, method, self._options)
        self._timer.start()
        self._engines[method.name].prefill(prompts, self._timer, bins)
        return sum(self._timer.stop().values())


def calibrate(bench: Bench, plan: Plan, shape: Shape, budget_s: float) -> tuple[list[dict[str, Any]], bool]:
    """Time each method on each mix, in rounds, for about ``budget_s`` seconds.

    Returns:
        One entry for each mix and method: ``group``, ``kind``, ``lengths``, ``method``, ``seconds`` (of each round);
        and whether it is fit to be kept: the machine did nothing else meanwhile.

    Raises:
        UserError: the machine is too slow for this model in this time.
    """
    start, rng = time.perf_counter(), np.random.default_rng(0)
    methods = [METHODS[name] for name in CALIBRATED]

    def draw(lengths: Sequence[int]) -> list[TokenIds]:
        return [rng.integers(0, shape.vocab_size, length, dtype=np.int64) for length in lengths]

    token_s = _probe(bench, draw, budget_s * SHARE_TO_PROBE)
    left_s = budget_s - (time.perf_counter() - start)
    batches = sized(plan, shape, methods, left_s / token_s)
    problem = f"{budget_s:g} s are too few here: a token takes {token_s:.2g} s"
    too_short = UserError("calibration_s", problem, "give more, or choose a smaller model")
    if len(batches) < FEWEST_MIXES:
        raise too_short
    fewest, most = min(map(sum, batches.values())), max(map(sum, batches.values()))
    warn(f"calibrating on {len(batches)} batches of {fewest:,} to {most:,} tokens, for about {budget_s:.0f} s")
    prompts = {mix: draw(lengths) for mix, lengths in batches.items()}
    pairs = [(mix, method) for mix in batches for method in methods]
    taken: dict[tuple[Mix, str], list[float]] = {(mix, method.name): [] for mix, method in pairs}
    for mix, method in pairs:
        bench.seconds(method, prompts[mix])  # warm-up of this shape
    round_s, before = 0.0, CpuTimes.now()
    for number in range(MOST_ROUNDS):
        began = time.perf_counter()
        if number and began - start + round_s > budget_s:
            break
        for place in rng.permutation(len(pairs)):  # in another order in each round, so that drift affects all alike
            mix, method = pairs[place]
            if number == 0 and time.perf_counter() - start > budget_s * OVERTIME:
                continue
            taken[mix, method.name].append(bench.seconds(method, prompts[mix]))
        round_s = time.perf_counter() - began
    whole = [mix for mix in batches if all(taken[mix, method.name] for method in methods)]
    if len(whole) < FEWEST_MIXES:
        raise too_short
    # A GPU does not wait for the other cores.
    share = (CpuUse.since(before).other or 0.0) if plan.device.type == "cpu" else 0.0
    if share > BUSY:
        warn(
            f"other processes used {share:.0%} of the processor while this calibrated: predictions may be far off, and "
            "the calibration is not kept"
        )
    measured = [
        {"group": batch, "kind": mix.kind, "lengths": batches[mix], "method": method.name,
         "seconds": taken[mix, method.name]}
        for batch, mix in enumerate(whole) for method in methods
    ]  # fmt: skip
    return measured, share <= BUSY


def samples_of(measured: Sequence[dict[str, Any]], plan: Plan, shape: Shape) -> list[CalibrationBatch]:
    """What ``calibrate`` measured, as the cost model takes it: each batch's work, and the median of its rounds."""
    settings = ForwardSettings.of(plan)
    return [
        CalibrationBatch(
            entry["group"],
            entry["method"],
            work_of(shape, METHODS[entry["method"]], entry["lengths"], settings),
            float(np.median(entry["seconds"])),
        )
        for entry in measured
    ]


def _probe(bench: Bench, draw: Callable[[Sequence[int]], list[TokenIds]], seconds: float) -> float:
    """Seconds per computed token of full-batching, in batches grown until one takes a quarter of ``seconds``."""
    method, length = METHODS[BASELINE], SHORTEST_PROMPT
    bench.seconds(method, draw([length] * 2))  # libraries load
    end_s = time.perf_counter() + seconds
    while True:
        taken_s = bench.seconds(method, draw([length] * 2))
        now = time.perf_counter()
        if 2 * length >= PROBE_TOKENS or taken_s > seconds / 4 or now + 2 * taken_s > end_s:
            return taken_s / (2 * length)
        length *= 2


def sized(plan: Plan, shape: Shape, methods: Sequence[Method], tokens: float) -> dict[Mix, list[int]]:
    """The mixes, scaled so that warming up and three rounds compute about ``tokens`` tokens, with their lengths.

    Where all are too many even at their smallest, the cheapest; and none that needs more than half of the memory.
    """
    settings, memory = ForwardSettings.of(plan), _memory(plan.device)

    def at(scale: float) -> dict[Mix, list[int]]:
        return {mix: mix.lengths(scale, plan.source.max_positions) for mix in MIXES}

    def cost(lengths: Sequence[int]) -> float:
        return PASSES * sum(part.computed_tokens for method in methods for part in settings.parts(method, lengths))

    low, high = 0.0, 8.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(map(cost, at(middle).values())) <= tokens else (low, middle)
    chosen: dict[Mix, list[int]] = {}
    left = max(tokens, 0.0) * 1.001 + 1
    for mix, lengths in sorted(at(low).items(), key=lambda item: cost(item[1])):
        needed = max(memory_bytes(shape, method, lengths, settings) for method in methods)
        if cost(lengths) <= left and needed <= memory:
            chosen[mix] = lengths
            left -= cost(lengths)
    return chosen


def _memory(device: torch.device) -> float:
    """Bytes that a calibration's batch may take."""
    if device.type == "cuda":
        return SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[1]
    free_mb = available_mb()
    return float("inf") if free_mb is None else SHARE_OF_MEMORY * free_mb * 2**20


def key_of(plan: Plan, shape: Shape) -> dict[str, Any]:
    """What a calibration holds for: nothing else may be predicted from it."""
    return {
        "model": plan.config.model.name,
        "shape": asdict(shape),
        "dtype": plan.config.dtype,
        "loadbit": plan.config.loadbit,
        "packing": plan.config.packing,
        "forward": plan.config.forward,
        "attention": ForwardSettings.of(plan).kernel,
        "device_name": machine.device_name(plan.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "code_hash": provenance.code_hash(),
    }


def path_of(results_dir: Path, key: dict[str, Any]) -> Path:
    """The file of a calibration."""
    bits = "" if key["loadbit"] == "none" else f"-{key['loadbit']}bit"
    return results_dir / f"calibration-{key['model']}-{key['dtype']}{bits}.json"


def load(results_dir: Path, key: dict[str, Any], budget_s: float) -> list[dict[str, Any]] | None:
    """What was measured under this very key, for as long as asked or longer; None where there is no such file."""
    try:
        content = json.loads(path_of(results_dir, key).read_text(encoding="utf-8"))
        fits = content["key"] == key and content["budget_s"] >= budget_s
        return list(content["measured"]) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(results_dir: Path, key: dict[str, Any], budget_s: float, measured: list[dict[str, Any]]) -> Path:
    """Write a calibration; it appears whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    path = path_of(results_dir, key)
    try:
        records.write_json(path, {"key": key, "budget_s": budget_s, "measured": measured})
    except OSError as error:
        raise UserError("results_dir", f"cannot write '{path}' ({error.strerror})", "name a writable folder") from None
    return path
