"""CONTRIBUTING.md's promise: a method, a dataset, a model, an experiment, each by one file, and no other one edited."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from src.cli import UserError
from src.prefilling import methods
from src.prefilling.method import Method
from src.records.store import Record, read_all
from src.report.build import report_on

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    """The block of CONTRIBUTING.md that begins with the file's name, as a comment."""
    found = re.search(rf"^```\w+\n# {re.escape(name)}\n(.*?)^```", GUIDE, re.S | re.M)
    assert found, f"CONTRIBUTING.md shows no {name}"
    return found[1]


def python(tree: Path, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a tree, with the tree's own package."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        input=input,
        capture_output=True,
        text=True,
        timeout=120,
    )


# Runs one line of settings after another: a process for each would mostly import.
SEVERAL = """
import contextlib, gc, importlib, io, json, sys
from src import cli, run
from src.jobs.experiments import sweep
importlib.import_module("src.measure.runner")
gc.freeze()
done = {"sweep": sweep("chat_today", ["scale=cpu"])}
for name, arguments in json.load(sys.stdin).items():
    sys.argv = ["src.run", *arguments]
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.guarded(run.main)
    done[name] = [code, said.getvalue()]
print(json.dumps(done))
"""
LOADED = ["model=llama-tiny", "dataset=chat", "metric=ttft", "arrivals=poisson", "rate=500", "num_prompts=12",
          "batch_size=4", "device=cpu", "isolate=false", "utilization_loop_s=0", "sampler_overhead_s=0"]  # fmt: skip
RUNS = {
    "experiment": [
        "--multirun", "experiment=chat_today", "scale=cpu", "device=cpu", "results_dir=here", "isolate=false",
        "ideal=false", "utilization_loop_s=0", "sampler_overhead_s=0", "warmup=0", "batch_size=4",
    ],
    "refused": [*LOADED, "method=longest-first", "results_dir=offline"],
    "policy": [*LOADED, "policy=longest-wait-alone", "results_dir=loaded"],
}  # fmt: skip


@dataclass
class Tree:
    """A copy of the source tree with the guide's files added to it, and what became of RUNS in it."""

    folder: Path
    done: dict[str, Any]
    records: list[Record]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    folder = tmp_path_factory.mktemp("tree")
    for name in ("src", "configs", "results/paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "src/prefilling/added/longest_first.py",
        "src/prefilling/added/one_by_one.py",
        "src/queueing/policies/longest_wait_alone.py",
        "src/workload/length_profiles/chat.csv",
        "configs/dataset/chat.yaml",
        "configs/model/llama-tiny.yaml",
        "configs/experiment/chat_today.yaml",
        "src/report/sections/chat_today.py",
    ):
        assert not (folder / name).exists()
        (folder / name).write_text(example(name), encoding="utf-8")
    done = python(folder, "-c", SEVERAL, input=json.dumps(RUNS))
    assert done.returncode == 0, done.stdout + done.stderr
    return Tree(folder, json.loads(done.stdout), list(read_all(folder / "here")))


@pytest.mark.slow
def test_what_is_added_is_measured_beside_the_rest(tree: Tree) -> None:
    assert tree.done["experiment"][0] == 0, tree.done["experiment"]
    rows = {record.row.method: record.row for record in tree.records}
    assert set(rows) == {"full-batching", "longest-first", "one-by-one"}
    for row in rows.values():
        assert (row.status, row.status_reason) == ("ok", None)
        assert (row.model, row.dataset) == ("llama-tiny", "chat")
        assert row.dataset_detail.startswith("profile chat sha256:")
        assert row.verified_max_rel_diff is not None  # verified before it was timed
    # What each does shows in what it computes: sorting pads less, and a prompt alone is never padded.
    assert rows["full-batching"].padding_ratio > rows["longest-first"].padding_ratio > 1
    assert rows["one-by-one"].padding_ratio == 1
    assert len({row.workload_fingerprint for row in rows.values()}) == 1


@pytest.mark.slow
def test_an_added_experiment_is_swept_as_the_guide_says(tree: Tree) -> None:
    # What src.reproduce begins with: batches of 64 would not fit into the experiment's prompts; those of its sweep do.
    assert tree.done["sweep"] == [["experiment=chat_today", "scale=cpu", f"batch_size={size}"] for size in (2, 4)]


@pytest.mark.slow
def test_an_added_method_that_needs_all_prompts_serves_no_arrivals(tree: Tree) -> None:
    code, said = tree.done["refused"]
    line = "error: method: longest-first needs all prompts before its first batch, and they have not arrived"
    assert (code, said.splitlines()[-1].split(";")[0]) == (2, line)


@pytest.mark.slow
def test_a_policy_is_found_by_its_file(tree: Tree) -> None:
    assert tree.done["policy"][0] == 0, tree.done["policy"]
    (record,) = read_all(tree.folder / "loaded")
    assert (record.row.policy, record.row.num_batches) == ("longest-wait-alone", 12)


@pytest.mark.slow
def test_its_records_are_reported_also_where_the_method_is_not(tree: Tree) -> None:
    # By this tree, which has none of the added files.
    summary = report_on(tree.folder / "here").files[0].read_text(encoding="utf-8")
    assert "| longest-first" in summary
    assert "| one-by-one" in summary


@pytest.mark.slow
def test_an_experiments_section_is_found_by_its_file_and_takes_its_records(tree: Tree) -> None:
    results = tree.folder / "here"
    assert {record.row.experiment for record in tree.records} == {"chat_today"}
    done = python(tree.folder, "-m", "src.report", "results_dir=here")
    assert done.returncode == 0, done.stderr
    lines = (results / "report" / "chat_today.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "Method,Batch,Speedup,records"
    assert len(lines) == 1 + len(tree.records)
    page = (results / "report" / "report.html").read_text(encoding="utf-8")
    assert "Longest first is faster than full-batching on our chats" in page
    summary = (results / "report" / "summary.md").read_text(encoding="utf-8")
    assert "## Our chats, " in summary


@pytest.mark.parametrize("content", [{}, {"METHOD": "half-done"}, {"METHOD": Method("done")}])
def test_a_file_that_holds_no_method_of_its_name_is_named(
    content: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("half_done")
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, "src.prefilling.added.half_done", module)
    with pytest.raises(
        UserError, match=r"^src/prefilling/added/half_done\.py: .*; give it METHOD = Method\('half-done', …\)"
    ):
        methods._added("half-done")
    monkeypatch.setattr(module, "METHOD", Method("half-done", rows="bin"), raising=False)
    assert methods._added("half-done").packs
