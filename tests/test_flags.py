"""Hydra's flags, as people use them: what a run would use, wrong flags in one line, completion in bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, command

from src import run
from src.completion import INSTALL, UNINSTALL
from src.config import CHOICES, METHODS

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--batch_size=4", "--batch_size=4: there is no such flag; `--hydra-help` lists the flags; settings"),
        ("--batch-size 4", "--batch-size: there is no such flag"),
        ("--cfg", "--cfg: expected one argument"),
        ("--cfg everything", "--cfg: invalid choice: 'everything'"),
        ("--info everything", "--info: invalid choice: 'everything'"),
        ("--resolve", "--resolve: it says how --cfg prints settings; write --cfg job --resolve"),
        ("--multirun --cfg job", "--multirun --cfg: they do not go together; give one of them"),
        ("--run --info", "--info: they do not go together"),
        ("--config-dir nowhere", "Additional config directory"),
        ("--config-name nowhere", "Cannot find primary config 'nowhere'"),
        ("--experimental-rerun job.pickle", "--experimental-rerun: there is nothing of Hydra's to run again"),
        ("--cfg job bacth_size=4", "bacth_size: there is no such setting"),
        ("--cfg job dataset=nonsense", "dataset: unknown 'nonsense'"),
        ("-sc", "-sc: ''; write -sc install=bash (or fish, zsh)"),
        ("-sc install=tcsh", "-sc: 'install=tcsh'; write -sc install=bash"),
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


def offered(call: Call, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    code, out, err = call(run.main, "-sc", "query=bash")
    assert (code, err) == (0, "")
    return out.split()


def test_completion_offers_settings_groups_and_choices(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(call, monkeypatch, "prepack-run method=") == [f"method={method}" for method in METHODS]
    assert offered(call, monkeypatch, "prepack-run dataset.source=") == [
        f"dataset.source={source}" for source in CHOICES["dataset.source"]
    ]
    assert offered(call, monkeypatch, "prepack-run batch_size=4 dataset=m") == ["dataset=mmlu"]
    models = offered(call, monkeypatch, "prepack-run model=")
    assert models == [f"model={path.stem}" for path in sorted((ROOT / "configs" / "model").glob("*.yaml"))]
    settings = offered(call, monkeypatch, "prepack-run ")
    assert {"method=", "methods=", "quirks=", "dataset=", "dataset.", "batch_size="} <= set(settings)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_completion_works_in_bash_for_the_module_and_the_program(tmp_path: Path) -> None:
    program = tmp_path / "prepack-run"  # as pip writes it
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom src.run import command\nsys.exit(command())\n")
    program.chmod(0o755)
    script = f"""
    export PATH={Path(sys.executable).parent}:{tmp_path}:$PATH PYTHONPATH={ROOT}
    eval "$({sys.executable} -m src.run -sc install=bash)"
    press_tab() {{
        COMP_LINE=$1 COMP_POINT=${{#1}}
        read -ra COMP_WORDS <<< "$1"; COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _prepack_run; echo "${{COMPREPLY[*]}}"
    }}
    press_tab "python -m src.run metric=t"
    press_tab "prepack-run batch_size=4 model=llama2-1"
    press_tab "python -m http.server metric=t"
    complete -p python prepack-run
    eval "$({sys.executable} -m src.run -sc uninstall=bash)"
    complete -p prepack-run 2>/dev/null || echo gone
    """
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["metric=ttft", "model=llama2-1.3b model=llama2-13b", ""], done.stderr
    assert [line.split()[-1] for line in lines[3:]] == ["python", "prepack-run", "gone"]


def test_other_shells_get_hydras(call: Call) -> None:
    code, out, _ = call(run.main, "-sc", "install=fish")
    assert code == 0
    assert "complete" in out
    for typed, printed in (("install=bash", INSTALL), ("uninstall=bash", UNINSTALL)):
        assert call(run.main, "-sc", typed) == (0, f"{printed}\n", "")


def test_the_readme_says_how_to_complete() -> None:
    line = 'eval "$(python -m src.run -sc install=bash)"'
    assert line in (ROOT / "README.md").read_text(encoding="utf-8")
    assert line in command("src.run", "--help").stdout


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    code = "from src.cli import guarded; exit(guarded(lambda: [print(n) for n in range(100_000)] and 0))"
    typed = f"'{sys.executable}' -c '{code}' | head -n 1"
    done = subprocess.run(typed, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
