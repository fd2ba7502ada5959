"""Who types what the authors' scripts take is told ours, and what is told can be run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from src import run
from src.authors import SETTINGS, VALUES
from src.compose import compose
from src.config import CHOICES, CONFIG_DIR

Call = Callable[..., tuple[int, str, str]]
# The two commands of the authors' README, as typed behind their scripts, and what each setting of ours must be.
COMMANDS = {
    "--metric=prefill --dataset=mmlu --batch_size=64 --model_name=llama1b --num_runs=5": ("4", 64),
    "--metric=prefill --model_name=llama1b --batch_size=32 --loadbit=8 --dataset=mmlu": ("8", 32),
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_the_commands_of_the_authors_readme_are_answered_with_ours(typed: str, call: Call) -> None:
    code, out, err = call(run.main, *typed.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    said, _, command = err.strip().partition("; type python -m src.run ")
    assert said == "error: --metric: settings have no dashes"
    config = compose(command.split())
    assert (config.loadbit, config.batch_size) == COMMANDS[typed]
    assert config.methods == ["prepacking", "dataset-prepacking", "full-batching", "length-ordered"]
    assert (config.model.name, config.dataset.name, config.metric) == ("llama2-1.3b", "mmlu", "prefill")
    assert (config.protocol, config.numerics, config.packing, config.repeats) == ("paper", "authors", "binpacking", 5)


def test_all_of_their_flags_at_once(call: Call) -> None:
    typed = ["--metric=TTFT", "--model_name", "llama2", "--binpack_algo=ip", "--loadbit=16", "--num_runs=3",
             '--methods=["prepack_dataset", "full-batching"]']  # fmt: skip
    _, _, err = call(run.main, *typed)
    assert err.strip().endswith(
        "type python -m src.run protocol=paper numerics=authors sample=authors metric=ttft model=llama2-7b "
        "packing=optimal loadbit=none repeats=3 methods=[dataset-prepacking,full-batching]"
    )


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("metric=TTFT", "metric: unknown 'TTFT'; did you mean ttft? choose one of prefill, ttft"),
        ("loadbit=16", "loadbit: unknown '16'; did you mean none? choose one of none, 4, 8"),
        ("packing=greedy", "packing: unknown 'greedy'; did you mean binpacking? choose one of"),
        ("model=llama1b", "model: unknown 'llama1b'; did you mean llama2-1.3b? choose one of"),
        ("methods=[prepack]", "methods: unknown 'prepack'; did you mean prepacking? choose one of"),
        ("model_name=llama1b", "model_name: there is no such setting; did you mean model=? `python"),
        ("+num_runs=5", "num_runs: there is no such setting; did you mean repeats=? `python"),
    ],
)
def test_their_names_without_dashes(typed: str, line: str, call: Call) -> None:
    code, _, err = call(run.main, typed)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"error: {line}")


def test_every_name_that_is_told_is_one_of_ours() -> None:
    models = {path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")}
    for setting, names in VALUES.items():
        known = models if setting == "model" else CHOICES[setting if setting != "methods" else "method"]
        assert set(names.values()) <= set(known)
        assert not set(names) & set(known)
    config = vars(compose([]))
    assert set(SETTINGS.values()) <= set(config)
    assert not set(SETTINGS) & set(config)
