"""No accident loses, doubles or corrupts a result: kills, time limits, full memory, full disks, two at once."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY_OVERRIDES
from launcher import finished, start

from src import hub, run
from src.cli import UserError
from src.config import Config, as_dict
from src.jobs import agenda, apart, in_time, template, worker
from src.jobs.forecast import Clock, Forecast
from src.measure.machine import manifest
from src.measure.outcome import Run, status_of
from src.measure.plan import prepare
from src.measure.process import resident_mb
from src.measure.rows import to_records
from src.records import store as records
from src.records.row import Row
from src.records.store import Record

APART = [*TINY_OVERRIDES, "isolate=true"]
Call = Callable[..., tuple[int, str, str]]
Measure = Callable[..., list[Record]]


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in found.read_text(encoding="ascii").split()] if found.exists() else []


def measuring(parent: int) -> int | None:
    """What measures for a run: a fork of the run's template process."""
    return next((fork for template in children(parent) for fork in children(template)), None)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not come about in time")


def rows(results: Path) -> dict[str, Row]:
    found = list(records.read_all(results))
    assert len(found) == len({record.row.run_id for record in found}) == len(list(results.rglob("record.json")))
    return {record.row.run_id: record.row for record in found}


def leftovers(results: Path) -> list[Path]:
    return list(results.glob(".tmp-*"))


def test_a_run_that_takes_too_long_is_a_row(tmp_path: Path) -> None:
    done = finished(*APART, "repeats=1000000", "timeout_s=8", f"results_dir={tmp_path}")
    assert done.returncode == 1
    (row,) = rows(tmp_path).values()
    assert (row.status, row.status_reason) == ("timeout", "not finished after timeout_s=8")
    assert (row.method, row.batch_size, row.num_prompts) == ("prepacking", 4, 12)
    assert row.workload_fingerprint
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "who"), [(signal.SIGSEGV, "fork"), (signal.SIGKILL, "template")])
def test_a_child_that_is_killed_is_a_row_and_a_finished_record_stays(
    tmp_path: Path, call: Call, number: signal.Signals, who: str
) -> None:
    methods = "methods=[prepacking,full-batching]"
    arguments = (*APART, methods, f"results_dir={tmp_path}", "repeats=3")
    assert call(run.main, *arguments, "isolate=false")[0] == 0  # the same record, sooner
    before = rows(tmp_path)
    for more in ("rerun=true", "seed=1"):
        scratch = tmp_path / more
        scratch.mkdir()
        sweep = start(
            *arguments, "warmup=1000000" if more == "seed=1" else "rerun=true", more, TMPDIR=str(scratch)
        )  # fmt: skip
        child = wait_for(lambda pid=sweep.pid: measuring(pid))
        if more == "seed=1":  # it has left its pending rows, and goes on to measure
            wait_for(lambda scratch=scratch: list(scratch.glob("*/pending.json")))
            time.sleep(0.5)
        os.kill(child if who == "fork" else children(sweep.pid)[0], number)
        _, errors = sweep.communicate(timeout=30)
        assert sweep.returncode == 1, errors
    after = rows(tmp_path)
    assert {run_id: after[run_id] for run_id in before} == before
    failed = [row for run_id, row in after.items() if run_id not in before]
    assert {row.status for row in failed} == {"error"}
    assert {row.method for row in failed} == {"prepacking", "full-batching"}
    assert failed[0].status_reason == f"the process was ended by {number.name}"


def test_a_job_that_a_scheduler_ends_leaves_no_row(tmp_path: Path) -> None:
    sweep = start(*APART, "repeats=1000000", f"results_dir={tmp_path / 'results'}", TMPDIR=str(tmp_path))
    fork = wait_for(lambda: measuring(sweep.pid))
    wait_for(lambda: list(tmp_path.glob("*/pending.json")))
    for process in (fork, *children(sweep.pid)):  # it signals all processes, in any order
        os.kill(process, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(sweep.pid, signal.SIGTERM)
    _, errors = sweep.communicate(timeout=20)
    assert sweep.returncode == 130, errors
    assert not rows(tmp_path / "results")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_parent_and_child_promptly(tmp_path: Path, number: signal.Signals) -> None:
    sweep = start("--multirun", *APART, "repeats=1000000", "seed=0,1", f"results_dir={tmp_path}")
    child = wait_for(lambda: measuring(sweep.pid))
    time.sleep(1)
    asked = time.monotonic()
    os.kill(sweep.pid, number)
    _, errors = sweep.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert sweep.returncode == 130
    assert "stopped; nothing was recorded" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not Path(f"/proc/{child}").exists(), 5)


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_every_row_once(tmp_path: Path) -> None:
    moments = random.Random(20)
    sweep = ("--multirun", *TINY_OVERRIDES, "methods=[prepacking,full-batching]", "batch_size=2,6",
             "seed=0,1", f"results_dir={tmp_path}")  # fmt: skip
    seen: set[str] = set()

    def nothing_is_lost() -> None:
        nonlocal seen
        now = rows(tmp_path) if tmp_path.exists() else {}
        assert seen <= set(now), "a finished record was lost"
        seen = set(now)

    # In one process each, so that moments fall where it measures and writes.
    for _ in range(4):
        killed = start(*sweep)
        begun = moments.choice([1, 1, 1, 1, 2])  # which configuration to kill it in, of those that it measures
        wait_for(lambda run=killed, begun=begun: run.poll() is not None or run.output.count("measuring") >= begun)
        time.sleep(moments.uniform(0, 0.6))
        killed.kill()
        killed.wait()
        nothing_is_lost()
    assert seen, "the moments are badly chosen"
    # Parent, template and fork.
    apart = (*sweep, "isolate=true")
    parent = start(*apart)
    wait_for(lambda: measuring(parent.pid) or parent.poll() is not None)
    below: set[int] = set()
    end = time.monotonic() + moments.uniform(0, 1.5)
    while time.monotonic() < end:
        below |= {*children(parent.pid), measuring(parent.pid) or parent.pid}
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    for pid in below:  # the kernel takes them along
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 10)
    nothing_is_lost()
    assert finished(*apart).returncode == 0
    final = rows(tmp_path)
    assert sorted((row.batch_size, row.seed, row.method) for row in final.values()) == sorted(
        itertools.product((2, 6), range(2), ("prepacking", "full-batching"))
    )
    assert {row.status for row in final.values()} == {"ok"}
    assert not leftovers(tmp_path)


def test_two_sweeps_may_write_below_one_folder(tmp_path: Path) -> None:
    arguments = ("--multirun", *TINY_OVERRIDES, "batch_size=2,3,4", "rerun=true", f"results_dir={tmp_path}")
    both = [start(*arguments) for _ in range(2)]
    for sweep in both:
        _, errors = sweep.communicate(timeout=100)
        assert sweep.returncode == 0, errors
    assert sorted(row.batch_size for row in rows(tmp_path).values()) == [2, 3, 4]
    assert not leftovers(tmp_path)


def test_writers_of_one_run_at_once_leave_one_whole_record(measure: Measure, tmp_path: Path) -> None:
    import threading

    (record,) = measure()
    failures: list[BaseException] = []

    def write_often() -> None:
        try:
            for _ in range(40):
                records.write(record, tmp_path / "results")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(rows(tmp_path / "results")) == [record.row.run_id]
    assert not leftovers(tmp_path / "results")


def libraries_mb() -> int:
    """Private memory of a process that has imported what measuring needs; torch built for CUDA takes twice as much."""
    script = """
import src.jobs.worker
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData:")))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout) // 1024


def test_memory_that_runs_out_is_a_row_and_larger_batches_are_skipped(tmp_path: Path) -> None:
    limit_mb = libraries_mb() + 480
    # Logits at every position of a padded batch: 8 prompts of up to 512 tokens times a vocabulary of 60,000.
    arguments = [
        *APART, "++model.architecture.vocab_size=60000", "protocol=paper", "dataset=wikitext512",
        "dataset.source=profile", "num_prompts=16", "repeats=1", f"memory_limit_mb={limit_mb}",
        f"results_dir={tmp_path}", "methods=[full-batching,prepacking]",
    ]  # fmt: skip
    done = finished("--multirun", *arguments, "batch_size=1,8,16")
    assert done.returncode == 1, done.stderr
    found = {(row.method, row.batch_size): row for row in rows(tmp_path).values()}
    assert found["full-batching", 1].status == "ok"
    assert found["full-batching", 8].status == "oom"
    assert "allocate" in str(found["full-batching", 8].status_reason)
    assert found["full-batching", 16].status == "skipped"
    assert "dominated: memory ran out at batch size 8" in str(found["full-batching", 16].status_reason)
    again = finished("--multirun", *arguments, "batch_size=1,8,16")
    assert again.stderr.count("already recorded") == 3


@pytest.mark.parametrize(("error", "status", "reason"), [
    (MemoryError("malloc of size 64 failed"), "oom", "MemoryError: malloc of size 64 failed"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom",
     "RuntimeError: DefaultCPUAllocator: can't allocate memory"),
    (ValueError("no such column"), "error", "ValueError: no such column"),
])  # fmt: skip
def test_what_goes_wrong_outside_of_a_method_is_a_row(
    error: Exception, status: str, reason: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Libraries that write records need memory, too; within a limit there may be none left."""
    config = tiny_config()
    plan, pending = prepare(config), tmp_path / "pending.json"
    worker.write_pending(pending, plan.results_dir, to_records(Run(plan), manifest(plan.device)))

    def measure(*_: object) -> int:
        raise error

    assert template._measured(measure, as_dict(config), str(pending), None, progress=False) == template.EXIT_CRASHED
    apart._write_failures(pending, "error", "the process ended with exit code 70", config)
    (row,) = rows(plan.results_dir).values()
    assert (row.status, row.status_reason) == (status, reason)


@pytest.mark.parametrize(("text", "oom"), [
    ("CUDA error: out of memory", True), ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", True),
    ("CUDA error: an illegal memory access was encountered", False),
])  # fmt: skip
def test_libraries_of_cuda_say_in_words_that_memory_ran_out(text: str, oom: bool) -> None:
    assert status_of(RuntimeError(text))[0] == ("oom" if oom else "error")
    assert status_of(ValueError(text))[0] == "error"


def test_a_library_that_ends_the_process_leaves_a_row(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may do so with the exit code of a configuration in which a method failed."""
    config = tiny_config("isolate=true")
    plan = prepare(config)

    class Ended:
        def start(self, config: Config, pending: Path, plan: object) -> None:
            worker.write_pending(pending, prepare(config).results_dir, to_records(Run(prepare(config)), {}))

        def wait(self) -> int:
            return 1

    monkeypatch.setattr(apart.Template, "running", Ended)
    assert apart.run_apart(config) == 1
    (row,) = rows(plan.results_dir).values()
    assert (row.status, row.status_reason) == ("error", "the process ended with exit code 1")


def test_who_stops_reading_loses_no_measurement(tmp_path: Path) -> None:
    asked = [*APART, "methods=[prepacking,full-batching]", "repeats=1"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    to_head = start("--multirun", *asked, "batch_size=2,4", f"results_dir={tmp_path / 'head'}", output=pipe)
    wait_for(lambda: to_head.poll() is not None or select.select([reader], [], [], 0)[0])
    os.close(reader)  # as `head` does, once it has enough
    to_head.wait()
    full = start("--multirun", *asked, "batch_size=2,4", f"results_dir={tmp_path / 'full'}", output=Path("/dev/full"))
    full.wait()
    line = f"{sys.executable} -m src.run {' '.join(asked)} results_dir={tmp_path / 'closed'} >&-"
    subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=False)
    for name, expected in (("head", 4), ("full", 4), ("closed", 2)):
        assert [row.status for row in rows(tmp_path / name).values()] == ["ok"] * expected, name


def test_a_limit_that_holds_no_prompts_is_named(
    tiny_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It was said that transformers does not accept the model's architecture."""

    def measure(config: Config, *_: object) -> int:
        return len(prepare(config).methods)

    def for_model(*_: object, **__: object) -> None:
        raise MemoryError

    config = tiny_config()
    config.memory_limit_mb = 300
    monkeypatch.setattr(template, "limit_memory", lambda _: None)
    monkeypatch.setattr("src.prefilling.models.AutoConfig.for_model", for_model)
    assert template._measured(measure, as_dict(config), str(tmp_path / "none"), None, progress=False) == 2
    said = "memory_limit_mb: 300 MB are used up before prompts are loaded; give more, or leave it out"
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(("experiment", "ended", "status", "code"), [
    ("largest_batch", 1, "oom", 0), ("largest_batch", 70, "oom", 70), ("largest_batch", 1, "ok", 1),
    ("largest_batch", 1, "error", 1), ("largest_batch", 1, "timeout", 1), ("under_load", 1, "oom", 1),
    ("today", 1, "oom", 1),
])  # fmt: skip
def test_memory_that_runs_out_is_what_the_search_for_a_batch_looks_for(
    experiment: str, ended: int, status: str, code: int, tiny_config: Callable[..., Config], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """`make reproduce` ended in an error whenever the search for the largest batch had found it."""
    plan = prepare(tiny_config())
    search = SimpleNamespace(search=lambda overrides, folder, fits, measured: measured(plan))
    monkeypatch.setattr(in_time, "SEARCHES", {"largest_batch": search, "under_load": search})
    monkeypatch.setattr(in_time, "estimate", lambda *_: 1.0)
    monkeypatch.setattr(in_time, "run_apart", lambda *_: ended)
    monkeypatch.setattr(in_time, "_rows", lambda _: [Row(status=status)])
    task = agenda.Task(experiment, [], [plan], searches=experiment != "today")
    assert in_time.measure([task], tmp_path, Forecast(tmp_path), Clock(None, 0.0)) == (code, [])


@pytest.mark.skipif(resident_mb() is None, reason="this system does not tell memory in use")
def test_memory_that_is_kept_for_tensors_is_given_back() -> None:
    code = (
        "import torch; from src.measure.memory import give_back, keep_freed_memory; "
        "from src.measure.process import resident_mb; keep_freed_memory(); held = torch.ones(50_000_000); "
        "last = torch.ones(1000); before = resident_mb(); del held; kept = before - resident_mb(); "
        "done = give_back(); print(done, kept < 100, before - resident_mb() > 150)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["True", "True", "True"], ["False", "False", "True"])


def test_a_gated_model_is_a_row_and_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*_: Any) -> None:
        raise hub.GatedError("model.path", "some/model is gated", "accept its licence on the hub")

    monkeypatch.setattr("src.measure.plan.find_model", gated)
    code, _, err = call(run.main, *TINY_OVERRIDES, f"results_dir={tmp_path}")
    assert code == 2
    assert err.strip() == "error: model.path: some/model is gated; accept its licence on the hub"
    (row,) = rows(tmp_path).values()
    assert (row.status, row.method, row.batch_size) == ("gated", "prepacking", 4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_finished_record_is_saved(
    measure: Measure, small_disk: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = measure(f"results_dir={small_disk}")
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - 8192))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _, err = call(run.main, *TINY_OVERRIDES, "repeats=9", f"results_dir={small_disk}")
    line = err.strip().splitlines()[-1]
    assert code == 2
    assert "error: results_dir: cannot write" in line
    assert "No space left on device" in line
    (saved,) = tmp_path.glob("prepack-bench-saved-*/*")
    assert str(saved) in line
    assert records.read(saved).row.repeats == 9
    assert rows(small_disk) == {first.row.run_id: first.row}
    assert not leftovers(small_disk)


def test_where_one_record_cannot_be_written_the_others_are(measure: Measure, tmp_path: Path) -> None:
    first, second, third = measure("methods=[prepacking,full-batching,length-ordered]", "repeats=2")
    results, write = tmp_path / "elsewhere", records.write

    def failing(record: records.Record, folder: Path) -> Path:
        if record is first:
            raise UserError("results_dir", "cannot write", "make room")
        return write(record, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "write", failing)
        with pytest.raises(UserError, match="cannot write"):
            records.write_each([first, second, third], results)
    assert set(rows(results)) == {second.row.run_id, third.row.run_id}


def test_what_a_killed_writer_left_is_cleared_or_put_in_place(
    tiny_config: Callable[..., Config], measure: Measure, tmp_path: Path
) -> None:
    (record,) = measure()
    results = tmp_path / "results"
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = os.uname().nodename
    aside = results / f".tmp-{host}-{gone.pid}-0a1b2c3d"
    (results / record.row.run_id).rename(aside)
    half = results / f".tmp-{host}-{gone.pid}-99999999"
    half.mkdir()
    (half / "samples.csv").write_text("repeat,batch", encoding="utf-8")
    elsewhere = results / f".tmp-another-host-{gone.pid}-0a1b2c3d"
    mine = results / f".tmp-{host}-{os.getpid()}-0a1b2c3d"
    for draft in (elsewhere, mine):
        draft.mkdir()
    records.check_writable(results)
    assert list(rows(results)) == [record.row.run_id]
    assert set(leftovers(results)) == {elsewhere, mine}


def test_of_a_killed_writers_two_drafts_the_newer_stands(measure: Measure, tmp_path: Path) -> None:
    """It was killed after it had put the old record aside, or before it could."""
    (record,) = measure()
    results = tmp_path / "results"
    gone = subprocess.Popen(["true"])
    gone.wait()
    for place, names in enumerate((("11111111", "22222222"), ("22222222", "11111111"), ("33333333", None))):
        newer = dataclasses.replace(record.row, created_at=f"2030-01-0{place + 1}T00:00:00+00:00", repeats=90 + place)
        draft, aside = (results / f".tmp-{os.uname().nodename}-{gone.pid}-{name}" for name in names)
        if names[1]:
            (results / record.row.run_id).rename(aside)
        records.write(dataclasses.replace(record, row=newer), tmp_path / "made").rename(draft)
        (results / f".tmp-{os.uname().nodename}-{gone.pid}-44444444").touch()
        records.check_writable(results)
        assert [row.repeats for row in rows(results).values()] == [90 + place]
        assert not leftovers(results)


def test_a_process_of_its_own_starts_clean(tmp_path: Path) -> None:
    """Peak memory of a small run is not that of a large one before it in the same sweep."""
    arguments = [*APART, "++model.architecture.vocab_size=60000", "protocol=paper", "dataset=wikitext512",
                 "dataset.source=profile", "num_prompts=8", "repeats=1", "method=full-batching"]  # fmt: skip
    assert finished("--multirun", *arguments, "batch_size=8,1", f"results_dir={tmp_path}").returncode == 0
    peak = {row.batch_size: row.resident_before_mb for row in rows(tmp_path).values()}
    assert peak[1] is not None
    assert peak[8] is not None
    assert peak[1] < peak[8] + 30
