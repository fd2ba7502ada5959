"""Everything runs offline, on one CPU thread a worker, on models of a few thousand weights.

What takes long to import is imported where it is used: the process that hands tests to the workers reads this file too,
before they start, and uses none of it.
"""

from __future__ import annotations

import functools
import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from omegaconf import OmegaConf

from src import cli
from src import compose as composing
from src.config import Config, ModelConfig

if TYPE_CHECKING:
    import torch

    from src.prefilling.method import Prefilled
    from src.records.store import Record
    from src.report.cells import Table

settings.register_profile("project", deadline=None)  # two workers share two cores: a slow example is no failure
settings.load_profile("project")
ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "model_type": "llama",
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    # Large weights, so that a wrong mask or position shows far above rounding.
    "initializer_range": 0.3,
}
FAMILIES = {
    "llama": TINY,
    "mistral": TINY | {"model_type": "mistral", "sliding_window": 5},
    "qwen2": TINY | {"model_type": "qwen2"},
    "qwen3": TINY | {"model_type": "qwen3", "head_dim": 8},
}
TINY_OVERRIDES = [
    "model.name=tiny",
    "model.weights=random",
    *(f"++model.architecture.{key}={value}" for key, value in TINY.items()),
    "dataset.source=profile",
    "num_prompts=12",
    "batch_size=4",
    "repeats=2",
    "device=cpu",
    "isolate=false",  # in this process, unless a test is about the other
    "utilization_loop_s=0",
    "ideal=false",
    "sampler_overhead_s=0",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: one that starts last would keep a single worker busy while the other has nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> None:
    """Each timed pass collects garbage first: spare it what lives on anyway, a fifth of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_notes() -> None:
    import torch

    cli.warn.cache_clear()
    torch.set_num_threads(1)


def texts(header: list[str], body: list[list[str]], records: list[list[str]] | None = None) -> Table:
    """A table of words."""
    from src.report.cells import Column, make_table

    rows = [dict(zip(header, cells, strict=True)) for cells in body]
    return make_table([Column(label) for label in header], rows, records or [])


def tiny_model(family: str = "llama", dtype: torch.dtype | None = None, numerics: str = "own", **changes: Any) -> Any:
    """A model of a family; float32 unless said otherwise."""
    import torch

    from src.prefilling.loading import load_model
    from src.prefilling.models import find_model

    source = find_model(ModelConfig("tiny", weights="random", architecture=FAMILIES[family] | changes))
    return load_model(source, torch.device("cpu"), dtype or torch.float32, "none", seed=1, numerics=numerics)


def draw_prompts(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, TINY["vocab_size"], length, dtype=np.int64) for length in lengths]


def carry(model: Any, prompts: Any, method: str = "prepacking", timer: Any = None, **options: Any) -> Prefilled:
    """One batch, carried by a method."""
    from src.measure.timer import NoTimer
    from src.prefilling.engines import make_engine
    from src.prefilling.method import PrefillOptions
    from src.prefilling.methods import METHODS

    return make_engine(model, METHODS[method], PrefillOptions(**options)).prefill(prompts, timer or NoTimer())


def fail_for(method: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, when: str = "timed") -> None:
    """Have a method raise where it is timed, or where it is verified (which asks for first tokens)."""
    from src.measure import runner

    real = runner.make_engine

    def make(model: Any, which: Any, options: Any) -> Any:
        def failing(*_: Any) -> Any:
            raise error

        engine = real(model, which, options)
        if which.name == method and (options.metric == "ttft") == (when == "verified"):
            engine.prefill = failing
        return engine

    monkeypatch.setattr(runner, "make_engine", make)


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Config]:
    """Compose the shipped configuration onto a tiny model and a temporary results folder."""

    def make(*overrides: str) -> Config:
        config = _composed(overrides)
        if config.results_dir == "unset":
            config.results_dir = str(tmp_path / "results")
        return config

    return make


def _composed(overrides: tuple[str, ...]) -> Config:
    """What is composed. Hydra takes a fifth of a second: files are composed once, and values merged into that."""
    files = tuple(each for each in overrides if each.partition("=")[0] in composing.GROUPS)
    values = [each.lstrip("+") for each in overrides if each not in files]
    return composing.typed(OmegaConf.merge(_of_files(files), OmegaConf.from_dotlist(values)))


@functools.cache
def _of_files(overrides: tuple[str, ...]) -> Any:
    return composing.composed([*TINY_OVERRIDES, "results_dir=unset", *overrides])


@pytest.fixture
def measure(tiny_config: Callable[..., Config]) -> Callable[..., list[Record]]:
    """Measure a tiny configuration in this process."""

    from src.measure.plan import prepare
    from src.measure.runner import measure as run

    def make(*overrides: str) -> list[Record]:
        return run(prepare(tiny_config(*overrides)))

    return make


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call an entry point's main as the command line would: exit code, standard output, standard error."""

    def make(main: Callable[[], Any], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        code = cli.guarded(main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return make


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m …`` in a process of its own, from the project's root."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
