"""scripts/gpu_once.sh: the stages in their order, everything packed, nothing lost, bad input in one line."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT

OPTIONS = "seconds=, out=, wheels=, results=, scale=, stages= or experiment="
SCRIPT = ROOT / "scripts" / "gpu_once.sh"
# An interpreter that says what it was asked for, and leaves a record where it is asked to measure.
STAND_IN = """#!/bin/bash
echo "$* | $PYTHONPATH" >>"$CALLS"
case "$*" in
  *"-m pytest"*) exit "${TESTS:-0}" ;;
  *"minutes="*) mkdir -p results/a-gpu/run; echo '{}' >results/a-gpu/run/record.json; mkdir results/a-gpu/.tmp-half ;;
  *"share.py pack"*) touch "${@: -1}" ;;
esac
"""


def called(tmp_path: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    stand_in, calls = tmp_path / "python", tmp_path / "calls"
    stand_in.write_text(STAND_IN, encoding="utf-8")
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), f"out={tmp_path / 'out'}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHON": str(stand_in), "CALLS": str(calls), "PYTHONPATH": ""} | environment,
    )  # fmt: skip
    return done, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


def test_tests_then_a_smoke_run_then_records_and_all_of_it_comes_back(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").touch()
    done, calls = called(tmp_path, "seconds=500", f"wheels={tmp_path / 'wheels'}", "experiment=today,traces")
    assert done.returncode == 0, done.stderr
    asked = [call for call in calls if "pip list" not in call]
    wanted = ["pip install", "check_environment.py", "-m pytest -q -m gpu", "smoke=true scale=gpu",
              "scale=gpu minutes=", "share.py pack"]  # fmt: skip
    assert len(asked) == len(wanted)
    assert all(part in call for part, call in zip(wanted, asked, strict=True)), asked
    minutes = float(asked[4].split("minutes=")[1].split()[0])
    assert "experiment=today,traces" in asked[4]
    assert 1.15 * 60 * minutes + 30 <= 500  # it may run over by 15 %
    assert all(f"/site:{ROOT}" in call for call in asked[1:])  # carried packages come first, the tree is found anywhere
    with tarfile.open(tmp_path / "out" / "results.tgz") as packed:
        assert [name for name in packed.getnames() if name.endswith("record.json")] == ["results/a-gpu/run/record.json"]
        assert not [name for name in packed.getnames() if ".tmp-" in name]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.tgz", "a-gpu.tar.gz", "log.txt", "machine.txt",
    }  # fmt: skip


def test_a_stage_that_fails_keeps_no_other_from_being_done(tmp_path: Path) -> None:
    done, calls = called(tmp_path, TESTS="3")
    assert done.returncode == 1
    assert "== tests: exit code 3" in done.stdout
    assert any("minutes=" in call for call in calls)
    assert (tmp_path / "out" / "results.tgz").is_file()


def test_a_second_call_goes_on_from_what_the_first_one_brought_back(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "results" / "a-gpu" / "before").mkdir(parents=True)
    (first / "results" / "a-gpu" / "before" / "record.json").write_text("{}", encoding="utf-8")
    (first / "results" / "a-gpu" / "times.json").write_text("{}", encoding="utf-8")
    with tarfile.open(first / "results.tgz", "w:gz") as packed:
        packed.add(first / "results", "results")
    done, calls = called(tmp_path, "stages=records", f"results={first / 'results.tgz'}")
    assert done.returncode == 0, done.stderr
    assert any("minutes=" in call and "experiment=today,traces,generation,readme_table" in call for call in calls)
    with tarfile.open(tmp_path / "out" / "results.tgz") as packed:
        names = {name.removeprefix("results/a-gpu/") for name in packed.getnames()}
    assert {"times.json", "before/record.json", "run/record.json"} <= names


def test_a_commit_that_is_none_ends_it_before_time_is_spent(tmp_path: Path) -> None:
    done, calls = called(tmp_path, PREPACK_BENCH_COMMIT="main")
    assert (done.returncode, calls) == (2, [])
    assert "error: PREPACK_BENCH_COMMIT: 'main'; give the 40 hex digits that `git rev-parse HEAD` prints" in done.stderr


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("hours=1", f"hours=1: there is no such option; give {OPTIONS}"),
        ("seconds=ten", "seconds: 'ten'; give a whole number of 60 or more"),
        ("seconds=59", "seconds: '59'; give a whole number of 60 or more"),
        ("scale=tpu", "scale: unknown 'tpu'; choose one of cpu, gpu"),
        ("results=README.md", "results: 'README.md' is no .tgz; name an earlier call's results.tgz"),
        ("stages=tests,,smoke", "stages: 'tests,,smoke'; choose of tests, smoke, records"),
        ("wheels=nowhere", "wheels: no wheel in 'nowhere'; name a folder of .whl files"),
        ("out=/proc/nothing", "out: cannot write '/proc/nothing'; name a writable folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_done(argument: str, line: str, tmp_path: Path) -> None:
    done, calls = called(tmp_path, argument)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.splitlines()[-1] == f"error: {line}"
