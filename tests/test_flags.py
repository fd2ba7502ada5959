"""Hydra's flags, as people use them: what a run would use, wrong flags in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from src import run

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--batch_size=4", "--batch_size: settings have no dashes; type python -m src.run batch_size=4"),
        ("seed=1 --batch-size 4", "--batch-size: settings have no dashes; type python -m src.run seed=1 batch_size=4"),
        ("--batches=4", "--batches=4: there is no such flag; `--hydra-help` lists the flags; settings"),
        ("--cfg", "--cfg: expected one argument"),
        ("--cfg everything", "--cfg: invalid choice: 'everything'"),
        ("--info everything", "--info: invalid choice: 'everything'"),
        ("--config-dir /no/such/folder", "Additional config directory"),
        ("--config-name nowhere", "Cannot find primary config 'nowhere'"),
        ("--cfg job bacth_size=4", "bacth_size: there is no such setting"),
        ("--cfg job dataset=nonsense", "dataset: unknown 'nonsense'"),
    ],
)  # fmt: skip
def test_a_wrong_flag_ends_in_one_line_and_exit_code_2(typed: str, expected: str, call: Call) -> None:
    code, out, err = call(run.main, *typed.split())
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1), err
    assert err.startswith(f"error: {expected}")


def test_what_a_run_would_use_is_printed_and_not_run(call: Call) -> None:
    code, out, _ = call(run.main, "--cfg", "job", "--resolve", "experiment=today", "scale=cpu", "batch_size=7")
    settings = yaml.safe_load(out)
    assert (code, settings["batch_size"], settings["model"]["name"]) == (0, 7, "llama-15m")
    assert "${" not in out
    code, out, _ = call(run.main, "--cfg", "job", "--package", "dataset", "dataset=samsum")
    assert (code, yaml.safe_load(out)["name"]) == (0, "samsum")
    code, out, _ = call(run.main, "--cfg", "hydra")
    assert (code, yaml.safe_load(out)["hydra"]["output_subdir"]) == (0, None)


def test_looking_needs_no_torch() -> None:
    code = "import sys; from src.run import command; sys.exit(command() or int('torch' in sys.modules))"
    for typed, printed in (("--cfg job", "model:\n  name: llama-15m"), ("--info", f"file://{ROOT}/configs")):
        done = subprocess.run([sys.executable, "-c", code, *typed.split()], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert printed in done.stdout


def test_settings_of_ones_own_stand_beside_the_shipped_ones(call: Call, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("defaults: [dataset_schema]\nname: mine\nprofile: mine.csv\n")
    code, out, _ = call(run.main, "--config-dir", str(tmp_path), "--cfg", "job", "dataset=mine", "model=llama-8m")
    assert (code, yaml.safe_load(out)["dataset"]["profile"]) == (0, "mine.csv")


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    code = "from src.cli import guarded; exit(guarded(lambda: [print(n) for n in range(100_000)] and 0))"
    typed = f"'{sys.executable}' -c '{code}' | head -n 1"
    done = subprocess.run(typed, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
