"""The notebooks run from start to end, show what they say, and are stored with the outputs of this code and records."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("nbclient", reason="needs the development packages")
import nbformat

NOTEBOOKS = ROOT / "notebooks"
execute = runpy.run_path(str(ROOT / "scripts" / "notebooks.py"))["execute"]


def texts(notebook: Any, kind: str = "text/plain") -> list[str]:
    """What the cells printed or returned, but for pictures, with runs of spaces as one."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("text") or output.get("data", {}).get(kind, "") for output in found]
    return [" ".join(text.split()) for text in shown]


@pytest.mark.slow
def test_generation_goes_on_alike_from_all_caches() -> None:
    shown = texts(execute(NOTEBOOKS / "generation_demo.ipynb"))  # in the notebooks' own folder
    assert "7 of 7 continuations are equal" in shown
    methods = shown[-1]
    assert len(re.findall("7 of 7", methods)) == len(re.findall("modern|paper", methods)) == 5
    faults = next(text for text in shown if "running positions" in text)
    assert "(right) 7 " in faults
    assert "plain causal mask, restart positions 7" not in faults


@pytest.mark.slow
def test_the_results_notebook_is_stored_as_the_records_are() -> None:
    path = NOTEBOOKS / "explore_results.ipynb"
    stored, made = nbformat.read(path, as_version=4), execute(path, folder=ROOT)  # in the project's root
    assert texts(made) == texts(stored), "bring it up to date with: make notebooks"
    assert sum("image/png" in output.get("data", {}) for cell in made.cells for output in cell.get("outputs", [])) == 3


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_stored_notebook_was_executed_in_order_and_names_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    for text in texts(notebook) + texts(notebook, "text/html"):
        assert not re.search(r"(?<![\w<.])/(home|Users|root|tmp|usr|opt|work)/", text)
    assert path.stat().st_size < 400_000


def test_a_cell_that_fails_is_no_silent_success(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(path)
