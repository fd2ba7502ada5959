"""The wheel: installed elsewhere, without the checkout, its commands work from any folder and find what they need."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, TINY_OVERRIDES

from src import __version__, places, provenance

COMMANDS = ("run", "reproduce", "report", "compare", "advise", "demo")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "src", "configs", "results/paper")


def succeed(*arguments: object, cwd: Path, **environment: str) -> str:
    """Run a command that must end well: what it prints."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and name[:4] != "GIT_"}
    typed = [str(argument) for argument in arguments]
    done = subprocess.run(typed, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment that holds the wheel, and sees the packages of this one, but not this project."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("installed")
    tree = folder / "tree"  # building leaves folders behind
    for name in BUILT_FROM:
        source, copy = ROOT / name, tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, copy)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    offline = {"PIP_NO_INDEX": "1"}
    succeed(*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", folder, tree, cwd=folder, **offline)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    succeed(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder, **offline)
    shutil.rmtree(tree)
    # Lines of a .pth file add folders, but not what .pth files in these would: this checkout stays unseen.
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site / "environment.pth").write_text("\n".join(packages), encoding="utf-8")
    return python.parent


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of somebody else's: in a git repository of theirs, with a package ``src`` of theirs."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("raise ImportError('not yours')", encoding="utf-8")
    git = ("git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    succeed(*git, "init", "-q", ".", cwd=tmp_path)
    succeed(*git, "commit", "-q", "--allow-empty", "-m", "theirs", cwd=tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_wheel_says_what_it_takes(installed: Path, elsewhere: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(scripts) == {"prepack"}
    assert {line.split()[0] for line in succeed(installed / "prepack", "--help", cwd=elsewhere).splitlines()[2:8]} == {
        *COMMANDS
    }
    for name in COMMANDS:
        said = succeed(installed / "prepack", name, "--help", cwd=elsewhere)
        assert "results_dir" in said or name in ("compare", "demo"), name
        assert f"prepack {name}" in said, name
    assert "usage" in succeed(installed / "python", "-m", "prepack_bench.report", "--help", cwd=installed)
    printed = succeed(installed / "python", "-c", "import prepack_bench as it; print(it.__file__)", cwd=installed)
    assert Path(printed.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
def test_the_wheel_measures_and_reports_below_the_current_folder(installed: Path, elsewhere: Path) -> None:
    # In a process of its own, as by default, though it starts slowly: the template must find the wheel too.
    tiny = [each for each in TINY_OVERRIDES if each != "isolate=false"]
    printed = succeed(
        installed / "prepack",
        "run",
        *tiny,
        "repeats=1",
        "warmup=0",
        "methods=[prepacking,full-batching]",
        cwd=elsewhere,
    )
    assert "| prepacking " in printed
    (machine_folder,) = (elsewhere / "results").iterdir()
    made = [json.loads(path.read_text("utf-8"))["manifest"] for path in machine_folder.glob("*/record.json")]
    assert len(made) == 2
    # The code is this very code, and of no commit: the repository around is somebody else's.
    assert {one["code_hash"] for one in made} == {provenance.code_hash()}
    assert {(one["git_commit"], one["git_dirty"]) for one in made} == {(None, None)}
    succeed(installed / "prepack", "report", cwd=elsewhere)
    assert (elsewhere / "results" / "report" / "report.html").is_file()
    assert {path.name for path in elsewhere.iterdir()} == {".git", "src", "results"}


PROGRAM = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from prepack_bench import generate, prefill

sizes = {sizes}
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=None)).eval()
prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
packed = generate(model, None, prompts, max_new_tokens=4, do_sample=False, pad_token_id=0)
for number, prompt in enumerate(prompts):
    alone = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                           max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert packed[number, -4:].tolist() == alone[0, -4:].tolist()
print(prefill(model, prompts).computed_tokens)
"""


@pytest.mark.slow
def test_a_program_imports_the_wheel_by_its_own_name(installed: Path, elsewhere: Path) -> None:
    sizes = {name: value for name, value in TINY.items() if name != "model_type"}
    printed = succeed(installed / "python", "-c", PROGRAM.format(sizes=sizes), cwd=elsewhere)
    assert printed.strip() == "12"  # two bins of six, where padding computes eighteen


@pytest.mark.slow
def test_the_wheel_holds_every_file_that_the_program_reads(installed: Path) -> None:
    (package,) = installed.parent.glob("lib/python*/site-packages/prepack_bench")
    for beside, inside in ((places.CONFIGS, "configs"), (places.PAPER_FIGURES, "paper_figures"), (places.PACKAGE, ".")):
        wanted = {
            path.relative_to(beside): path.read_bytes()
            for path in beside.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert wanted
        for name, content in wanted.items():
            assert (package / inside / name).read_bytes() == content, name


def test_the_version_is_the_same_wherever_it_stands() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["license"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert __version__ in headings


def test_a_repository_further_up_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed("git", "init", "-q", ".", cwd=tmp_path)
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path / "inside")
    assert provenance._git("status", "--porcelain") is None
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as git sets it for hooks, of the repository it works on
    assert provenance._git("status", "--porcelain") == ""


def test_an_install_from_a_repository_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "prepack_bench-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: prepack-bench\nVersion: 0.1.0\n", encoding="utf-8")
    origin = {"url": "https://example.org/bench.git", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}
    (folder / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(provenance, "CHECKOUT", None)
    assert provenance._installed_commit() is None  # that is another folder's
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "prepack_bench")
    assert provenance._installed_commit() == "0123456789abcdef"
