"""Sweeps on a real SLURM of one node: a job a comparison, resumed after a job's death, and no job where none is due."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY_OVERRIDES, command

from src import reproduce, run
from src.jobs import cluster, reproducing
from src.records import store as records

Call = Callable[..., tuple[int, str, str]]
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=PATH)]
needs_slurm = pytest.mark.skipif(bool(MISSING), reason=f"needs SLURM, this machine has no {', '.join(MISSING)}")
NODE = ROOT / "scripts" / "slurm_node.sh"
SEEDS = ("seed=3", "seed=4")


@pytest.fixture(scope="module")
def node() -> Iterator[None]:
    """A cluster of one node with two cores, and a GPU by name."""
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher: pip install -e '.[slurm]'")
    started = subprocess.run(["sh", NODE, "start"], capture_output=True, text=True, env=os.environ | {"GPUS": "1"})
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip())
        yield
    subprocess.run(["sh", NODE, "stop", started.stdout.strip()], check=True, env=os.environ)


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An experiment of two comparisons on a tiny model, each in a process of its own within its job."""
    runs = [[*TINY_OVERRIDES, "isolate=true", f"results_dir={tmp_path / 'results'}", seed] for seed in SEEDS]
    monkeypatch.setattr(reproducing, "sweep", lambda *_: runs)
    return ["launcher=slurm", "scale=cpu", "experiment=today", f"results_dir={tmp_path / 'results'}"]


def jobs() -> dict[str, str]:
    """State of each job in the queue, by number."""
    shown = subprocess.run(["squeue", "-h", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in shown.splitlines())


def written(results: Path) -> dict[int, tuple[str, str]]:
    """Status and time of each record, by seed."""
    return {record.row.seed: (record.row.status, record.row.created_at) for record in records.read_all(results)}


@needs_slurm
@pytest.mark.slow
def test_a_sweep_goes_on_after_ctrl_c_and_after_a_jobs_death(
    node: None, swept: list[str], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"

    monkeypatch.setattr(cluster, "LATE_SECONDS", 1)  # its disk is not shared
    whole_report = reproducing.finish
    monkeypatch.setattr(reproducing, "finish", lambda results: ("", results))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "_wait", interrupted)
        code, out, err = call(reproduce.main, *swept)
    first, second = sorted(jobs(), key=int)
    assert code == 130
    assert f"the same command finds them; to end them: scancel {first} {second}" in out
    assert "stopped" in err

    def cancel_the_second() -> None:
        end = time.monotonic() + 60
        while jobs().get(second) != "RUNNING" and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(2)
        subprocess.run(["scancel", second], check=True)

    thread = threading.Thread(target=cancel_the_second)
    thread.start()
    code, out, _ = call(reproduce.main, *swept)
    thread.join()
    before = written(results)
    assert code == 1, out
    assert "submitted: 0, on their way already: 2" in out
    assert "1 queued, 1 running" in out  # each alone on the node, whose cores would do for both
    log = results / ".slurm" / f"{second}_0_log.out"
    assert f"job {second}, its log: {log}" in out
    assert log.is_file()
    assert {seed: status for seed, (status, _) in before.items()} == {3: "ok"}
    assert not list(results.glob(".tmp-*"))

    with monkeypatch.context() as patched:
        patched.setattr(reproducing, "finish", whole_report)
        code, out, _ = call(reproduce.main, *swept)
    after = written(results)
    assert code == 0, out
    assert "1 of them recorded already" in out
    assert "submitted: 1, on their way already: 0" in out
    assert {seed: status for seed, (status, _) in after.items()} == {3: "ok", 4: "ok"}
    assert after[3] == before[3]
    assert len((results / "report" / "summary.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2

    code, out, _ = call(reproduce.main, *swept)
    assert (code, jobs()) == (0, {}), out
    assert "2 comparisons and searches, 2 of them recorded already" in out


@needs_slurm
@pytest.mark.slow
def test_hydras_own_launcher_takes_the_same_settings(node: None, tmp_path: Path) -> None:
    typed = ["--multirun", "hydra/launcher=slurm", f"hydra.launcher.submitit_folder={tmp_path / 'jobs'}", "scale=cpu"]
    done = command(
        "src.run", *typed, *TINY_OVERRIDES, f"results_dir={tmp_path / 'results'}", "seed=5", "batch_size=3,5000"
    )
    assert done.returncode == 2, done.stderr
    assert "batch_size=5000" in done.stderr
    assert written(tmp_path / "results")[5][0] == "ok"


@needs_slurm
def test_a_gpu_job_waits_for_a_gpu_of_its_own(node: None, tmp_path: Path) -> None:
    executor = cluster._executor(tmp_path, cluster.settings("gpu", {"cpus_per_task": 1, "setup": ["sleep 60"]}))
    first, second = (executor.submit(print).job_id for _ in range(2))

    def shown(job: str) -> str:
        done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T %r"], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    end = time.monotonic() + 20
    while shown(second) != "PENDING Resources" and time.monotonic() < end:
        time.sleep(0.2)
    states = shown(first), shown(second)
    cores = subprocess.run(["sinfo", "-h", "-o", "%C"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["scancel", first, second], check=True)
    assert states == ("RUNNING None", "PENDING Resources")
    assert cores.strip() == "1/1/0/2"  # used, idle, other, all: it is not a core that the second waits for


@needs_slurm
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("slurm.partiton=main", "error: slurm.partiton: there is no such setting"),
        ("slurm.partition=fast", "error: slurm.partition: there is no 'fast'; choose one of main"),
        ("slurm.timeout_min=soon", "error: hydra.launcher.timeout_min: Value 'soon'"),
        (
            "slurm.account=x slurm.additional_parameters.begin=never",
            "error: launcher: sbatch takes no job (sbatch: error: Invalid --begin",
        ),
        ("minutes=3", "error: minutes: how long nodes take is not known here; leave it out with launcher=slurm"),
    ],
)
def test_bad_settings_end_in_one_line(node: None, swept: list[str], call: Call, typed: str, line: str) -> None:
    code, _, err = call(reproduce.main, *swept, *typed.split())
    assert code == 2
    assert err.startswith(line), err
    assert len(err.strip().splitlines()) == 1


def test_a_search_is_one_job_that_leaves_word_when_it_has_ended(tmp_path: Path) -> None:
    runs = {"searches": [[*TINY_OVERRIDES, "batch_size=4"]], "others": [[*TINY_OVERRIDES, "batch_size=4"]] * 2}
    search, other = cluster.jobs_of(runs, "searches", tmp_path)
    assert search.outcome
    assert (search.name == other.name, other.outcome) == (False, None)
    search.outcome.parent.mkdir()

    def interrupted(*_: object) -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        cluster.in_job(search.overrides, tmp_path, interrupted, search.outcome)
    assert search.found({}) is None
    cluster.in_job(search.overrides, tmp_path, lambda *_: {"prepacking": 12}, search.outcome)
    assert search.found({}) == []
    assert search.outcome.read_text(encoding="utf-8") == '{"prepacking": 12}'
    assert other.found({}) is None


def test_without_slurm_it_is_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = "error: launcher: slurm, but there is no sbatch here; use it where SLURM takes jobs\n"
    assert call(reproduce.main, "launcher=slurm") == (2, "", line)
    assert call(run.main, "--multirun", "hydra/launcher=slurm") == (2, "", line)


def test_without_the_package_it_is_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cluster.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(cluster.importlib.metadata, "distribution", missing)
    code, _, err = call(reproduce.main, "launcher=slurm")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: launcher: slurm needs the package hydra-submitit-launcher; install it: ")
    assert err.endswith(" -m pip install -e '.[slurm]'\n")


def test_a_launcher_that_is_none_is_one_line(call: Call) -> None:
    code, _, err = call(reproduce.main, "launcher=cloud")
    assert (code, err) == (2, "error: launcher: unknown 'cloud'; choose one of here, slurm\n")


def test_the_scale_is_that_of_the_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher: pip install -e '.[slurm]'")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    monkeypatch.setattr(cluster, "_slurm", lambda *_: "cpu*|(null)\nbig|gpu:a100:8\nbig|(null)\n")
    assert cluster.partition({}) == ("cpu", False)
    assert cluster.partition({"partition": "big"}) == ("big", True)
    assert cluster.partition({"partition": "cpu,big"}) == ("cpu,big", True)
    monkeypatch.setenv("SBATCH_PARTITION", "big")
    assert cluster.partition({}) == ("big", True)


def test_cpu_jobs_have_their_node_alone_and_gpu_jobs_a_gpu() -> None:
    pytest.importorskip("submitit", reason="needs hydra-submitit-launcher: pip install -e '.[slurm]'")
    cpu, gpu = cluster.settings("cpu", {}), cluster.settings("gpu", {"additional_parameters": {"nice": 100}})
    assert (cpu["gpus_per_node"], cpu["additional_parameters"]) == (None, {"exclusive": True})
    assert (gpu["gpus_per_node"], gpu["additional_parameters"]) == (1, {"nice": 100})
