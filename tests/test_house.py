"""The house keeps its rules: who imports whom, which files agree with which, every shipped YAML works."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from conftest import FAMILIES, ROOT

from src.compose import compose
from src.config import CONFIG_DIR, METHODS
from src.prefilling import methods, packing
from src.records.row import COLUMNS
from src.records.store import Record
from src.workload.profiles import FOLDER as PROFILE_DIR

# A file imports only from floors below its own, or from its own folder.
FLOORS = {
    "places": 0, "interval": 0, "authors": 0, "terminal": 0, "stats": 1, "cli": 1, "opening": 2, "hub": 2, "paper": 2,
    "provenance": 2, "config": 3, "config_under_load": 4, "config_checks": 5, "compose": 6, "workload": 6,
    "prefilling": 7, "records": 8, "queueing": 8, "measure": 9, "report": 10, "compare": 11, "jobs": 11, "advise": 12,
    "run": 12, "reproduce": 12, "demo": 12, "__main__": 13,
}  # fmt: skip
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, those of the project as ``src.…``."""
    found, package = set(), path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            of_package = module == "src" or not node.module
            found |= {f"{module}.{alias.name}" if of_package else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_a_file_imports_only_from_floors_below(path: Path) -> None:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    if parts == ("__init__",):
        return
    for module in imports_of(path):
        if module.startswith("src."):
            room = module.split(".")[1]
            assert room == parts[0] or FLOORS[room] < FLOORS[parts[0]], f"{path} imports {module}"


def test_no_file_imports_the_package_by_the_name_that_it_has_in_a_checkout_only() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in named} & {"src", "prepack_bench"}, path


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES}
    modules = set(files.values())
    needs = {}
    for path, name in files.items():
        found = imports_of(path) | named_in(path)
        needs[name] = {module for module in found if module in modules}
    order = TopologicalSorter(needs)
    order.prepare()  # raises CycleError, which names the circle


def named_in(path: Path) -> set[str]:
    """Modules that a file takes from a package, as in ``from ..measure import machine``."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = ".".join(filter(None, [*package[: len(package) - node.level + 1], node.module]))
            found |= {f"{above}.{alias.name}" for alias in node.names}
    return found


# Each spares a command seconds before it has anything to do, or may fail for a reason that has to be said in a line.
LATE_IMPORTS = {
    "__init__.py", "advise/__main__.py", "compare/__main__.py", "report/__main__.py", "reproduce.py", "jobs/apart.py",
    "jobs/template.py", "demo.py", "run.py",
}  # fmt: skip


def test_files_import_the_projects_own_at_the_top_but_for_one_import_in_each_command() -> None:
    late = Counter()
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                own = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom) and node.level]
                late[path.relative_to(ROOT / "src").as_posix()] += len(own)
    assert {name: count for name, count in late.items() if count} == dict.fromkeys(LATE_IMPORTS, 1)


@pytest.mark.parametrize(
    "name", ["prefilling/packing.py", "workload/batches.py", "workload/prompts.py", "stats.py", "config.py"]
)
def test_files_that_need_no_torch_import_none(name: str) -> None:
    assert not {
        module for module in imports_of(ROOT / "src" / name) if module.split(".")[0] in {"torch", "transformers"}
    }


def test_names_at_the_edge_are_the_names_inside() -> None:
    assert set(METHODS) == set(methods.METHODS)
    from src.config import CHOICES

    assert set(CHOICES["packing"]) == set(packing.PACKINGS)


@pytest.mark.parametrize(
    "path", sorted(CONFIG_DIR.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_shipped_yaml_composes(path: Path) -> None:
    needs = ["dataset.path=prompts.jsonl"] if path.stem == "file" else []
    config = compose([f"{path.parent.name}={path.stem}", *needs])
    if path.parent.name in {"model", "dataset"}:
        assert getattr(config, path.parent.name).name == ("prompts.jsonl" if needs else path.stem)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIG_DIR.glob("dataset/*.yaml") if path.stem != "file"))
def test_every_shipped_dataset_is_measured_on_a_tiny_model(name: str, measure: Callable[..., list[Record]]) -> None:
    (record,) = measure(f"dataset={name}", "dataset.source=profile", "repeats=1", "dataset.max_tokens=200")
    assert (record.row.status, record.row.dataset) == ("ok", name)
    assert (PROFILE_DIR / f"{record.row.dataset_detail.split()[1]}.csv").is_file()


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIG_DIR.glob("model/*.yaml")))
def test_every_shipped_model_is_measured_at_a_small_size(name: str, measure: Callable[..., list[Record]]) -> None:
    family = compose([f"model={name}"]).model.architecture["model_type"]
    small = [f"++model.architecture.{key}={value}" for key, value in (FAMILIES[family] | {"head_dim": 8}).items()]
    (record,) = measure(f"model={name}", f"model.name={name}", *small, "repeats=1")
    assert (record.row.status, record.row.model) == ("ok", f"own-{name}")


def test_conda_and_pip_ask_for_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == wanted


def test_everything_that_is_required_is_pinned_for_make_setup() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {re.split("[<>=]", text)[0].replace("_", "-") for text in project["dependencies"]}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").replace("_", "-")
    assert named <= set(re.findall("^([a-z0-9-]+)==", pins, re.M))


@pytest.mark.parametrize("arguments", [[], ["--without-dev"]])
def test_the_environment_is_checked(arguments: list[str]) -> None:
    if not arguments:
        pytest.importorskip("ruff", reason="needs the development packages")
    command = [sys.executable, "scripts/check_environment.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_environment_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = runpy.run_path(str(ROOT / "scripts" / "check_environment.py"))["main"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1" if name == "torch" else "999")
    monkeypatch.setattr(sys, "argv", ["check_environment.py", "--without-dev"])
    assert check() == 2
    said = capsys.readouterr().err
    assert "  torch>=2.11 (found: 0.1)\n" in said
    assert "pytest" not in said


def test_ci_runs_the_readmes_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets <= {line.split()[0] for line in shown.splitlines()}


def test_the_readmes_generated_parts_are_those_of_the_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["readme.py"])
    assert runpy.run_path(str(ROOT / "scripts" / "readme.py"))["main"]() == 0, capsys.readouterr()


def test_the_pages_explain_every_column_and_name_only_settings_that_exist() -> None:
    records = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    assert {name for name in COLUMNS if f"`{name}`" not in records} == set()
    pages = ("README.md", "docs/hub.md", "docs/cluster.md")
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    known = set((CONFIG_DIR / "config.yaml").read_text(encoding="utf-8").replace(":", " ").split())
    typed = set(re.findall(r"src\.run ([^\n`]+)", text))
    settings = {word.split("=")[0] for line in typed for word in line.split() if "=" in word}
    nested = {name for name in settings if "." in name}
    assert settings - nested - known - {"experiment", "scale", "model", "dataset", "install", "hydra/launcher"} == set()


def _anchor(heading: str) -> str:
    """What a page's heading is linked as."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(str(path.relative_to(ROOT)) for path in [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"),
    ROOT / "results" / "README.md",
]))  # fmt: skip
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M) if anchor and path.is_file() else []
        if not path.exists() or (anchor and anchor not in map(_anchor, headings)):
            dead.append(target)
    assert not dead


def test_the_project_says_nothing_of_the_machine_it_was_made_on() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    home = str(Path.home())
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png"}:
            assert f"{home}/" not in path.read_text(encoding="utf-8", errors="ignore"), name


@pytest.mark.slow
@pytest.mark.parametrize("check", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join)
def test_the_sources_pass_what_make_lint_asks(check: list[str]) -> None:
    pytest.importorskip(check[0], reason="needs the development packages")
    done = subprocess.run([sys.executable, "-m", *check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
