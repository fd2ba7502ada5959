"""What makes a measurement INVALID: each rule by itself, in records, and in what a report shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.measure import process, runner, turns, validity
from src.measure.memory import Peak
from src.measure.process import CpuUse
from src.measure.sampler import RISE_S, _rising
from src.measure.validity import Evidence, invalid_reasons, notes_of
from src.records import store as records
from src.records.row import Row
from src.records.store import Record
from src.report import words
from src.report.comparison import comparison_table

GOOD = Evidence(
    pass_seconds=[1.02, 1.0, 0.99, 1.01], utilization_valid=True, sm_clocks_mhz=(1900, 1980), other_processes=0,
    tree_dirty=False, swapped_mb=0.0,
)  # fmt: skip
NEW = {
    "other_cpu_pct", "stolen_cpu_pct", "throttled_cpu_pct", "cpu_clock_mean_mhz",
    "valid", "invalid_reasons", "notes", "utilization_loop_s", "mean_memory_utilization_pct", "energy_j",
    "memory_clock_mean_mhz", "temperature_max_c", "throttle_reasons",
    "other_gpu_processes", "other_gpu_processes_mb", "device_memory_used_mb",
    "sampler_readings", "telemetry_gaps",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sm_clocks_mhz": (1500, 1980)}, "the SM clock moved between 1500 and 1980 MHz"),
        ({"throttle_reasons": ["hardware slowdown"]}, "the GPU was throttled (hardware slowdown)"),
        ({"other_processes": 1}, "1 other process on the GPU"),
        ({"other_processes": 2}, "2 other processes on the GPU"),
        ({"pass_seconds": [1.2, 1.0, 1.0]}, "warm-up did not settle (the first repeat took 20 % longer)"),
        ({"cpu": CpuUse(10.0, 1.2)}, "other processes used 12 % of the processor meanwhile"),
        ({"cpu": CpuUse(10.0, stolen_s=0.6)}, "the host gave 6 % of the processor's time to others"),
        (
            {"cpu": CpuUse(10.0, throttled_s=0.2)},
            "the control group's limit held the process for 2 % of the time",
        ),
        ({"cpu_clocks_mhz": (2500, 3300)}, "the processor's clock moved between 2500 and 3300 MHz"),
        ({"tree_dirty": True}, "the source tree has uncommitted changes"),
        ({"swapped_mb": 12.0}, "12.0 MB of the process were swapped out"),
    ],
)
def test_each_rule_by_itself(change: dict[str, Any], reason: str) -> None:
    assert invalid_reasons(GOOD) == []
    assert invalid_reasons(replace(GOOD, **change)) == [reason]


def test_what_is_not_known_is_held_against_no_one() -> None:
    assert invalid_reasons(Evidence(pass_seconds=[1.0], utilization_valid=True)) == []


def test_rules_hold_at_their_limits() -> None:
    assert invalid_reasons(replace(GOOD, sm_clocks_mhz=(900, 1000))) == []
    assert invalid_reasons(replace(GOOD, pass_seconds=[2.0, 1.0])) == []  # two repeats do not say which was odd
    assert invalid_reasons(replace(GOOD, pass_seconds=[0.5, 1.0, 1.0])) == []
    assert invalid_reasons(replace(GOOD, swapped_mb=-5.0)) == []
    assert invalid_reasons(replace(GOOD, cpu=CpuUse(10.0, 1.0, 0.5, 0.1))) == []
    assert invalid_reasons(replace(GOOD, cpu=CpuUse(10.0, None, None, None))) == []
    assert invalid_reasons(replace(GOOD, cpu=CpuUse(0.1, 0.02, unsure_s=0.02))) == [], "two steps of the kernel's clock"
    assert invalid_reasons(replace(GOOD, cpu_clocks_mhz=(3000, 3300))) == []
    everything = replace(
        GOOD, sm_clocks_mhz=(1, 2), throttle_reasons=["x"], other_processes=1, pass_seconds=[2, 1, 1],
        utilization_valid=False, tree_dirty=True, swapped_mb=1.0, cpu=CpuUse(1.0, 1.0, 1.0, 1.0), cpu_clocks_mhz=(1, 2),
    )  # fmt: skip
    assert len(invalid_reasons(everything)) == 10


def test_a_data_centre_gpus_ordinary_state_is_a_note_and_no_reason() -> None:
    capped = replace(GOOD, throttle_reasons=["software power cap"])
    assert (invalid_reasons(capped), notes_of(capped)) == ([], ["the GPU was held by its software power cap"])
    slower = replace(capped, sm_clocks_mhz=(1755, 1980))  # as an H100 does under full batches
    assert invalid_reasons(slower) == []
    assert notes_of(slower) == [*notes_of(capped), "the SM clock moved between 1755 and 1980 MHz"]
    slower_and_hot = replace(slower, throttle_reasons=["software power cap", "hardware thermal slowdown"])
    assert len(invalid_reasons(slower_and_hot)) == 2
    hot = replace(GOOD, throttle_reasons=["software power cap", "software thermal slowdown"])
    assert invalid_reasons(hot) == ["the GPU was throttled (software thermal slowdown)"]
    assert notes_of(hot) == notes_of(capped)
    rising = replace(GOOD, rising_clock_mhz=345.0)
    assert invalid_reasons(rising) == []
    assert notes_of(rising) == ["at the start of a pass the SM clock was still rising from 345 to 1980 MHz"]
    assert notes_of(replace(GOOD, rising_clock_mhz=1950.0)) == []  # no more than it moves anyway
    assert notes_of(GOOD) == []


@pytest.mark.parametrize(
    ("clocks", "left_out"),
    [
        ([345, 1980, 1980], 1),
        ([345, 900, 1980, 1980], 2),
        ([1980, 1980], 0),
        ([1980, 345, 1980], 0),  # a dip in the midst
        ([345, 1980, 345, 1980], 1),
        ([1980, 1200], 0),
        ([345], 0),  # a clock that never rose
        ([], 0),
    ],
)
def test_a_clock_that_rises_after_idling_is_left_out_and_one_that_dips_is_not(clocks: list[int], left_out: int) -> None:
    readings = [(0.1 * place, float(mhz)) for place, mhz in enumerate(clocks)]
    assert _rising(readings) == (clocks[:left_out], clocks[left_out:])
    later = [(at + RISE_S + 0.01, mhz) for at, mhz in readings]
    assert _rising(later) == ([], clocks)  # long after the start of a pass it has no excuse


def test_too_few_windows_leave_out_the_utilization_and_not_the_times() -> None:
    seen = replace(GOOD, utilization_valid=False)
    assert invalid_reasons(seen) == []
    assert notes_of(seen) == ["too few averaging windows for a utilization"]


class Cores:
    """The files in which the kernel tells of two cores, of which this process may use the first."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for name in ("PROC", "CGROUP", "CPUS"):
            (root / name).mkdir()
            monkeypatch.setattr(process, name, root / name)
        (root / "PROC" / "self").mkdir()
        monkeypatch.setattr(process.os, "sched_getaffinity", lambda _: {0})
        self.clock = [0.0, 0.0]
        monkeypatch.setattr(process.time, "perf_counter", lambda: self.clock[0])
        monkeypatch.setattr(process.time, "process_time", lambda: self.clock[1])

    def tell(self, at_s: float, own_s: float, busy: int, stolen: int = 0, elsewhere: int = 0) -> None:
        """Ticks of 10 ms: of the first core its busy and stolen ones, of the other one its busy ones."""
        self.clock = [at_s, own_s]
        lines = [
            "cpu 1 2 3 4 5 6 7 8 0 0",
            f"cpu0 {busy} 0 0 9999 9999 0 0 {stolen} 0 0",
            f"cpu1 {elsewhere} 0 0 9 9 0 0 9 0 0",
        ]
        (self.root / "PROC" / "stat").write_text("\n".join([*lines, "intr 5"]) + "\n", encoding="ascii")

    def group(self, line: str, folder: str, content: str) -> None:
        (self.root / "PROC" / "self" / "cgroup").write_text(line + "\n", encoding="ascii")
        (self.root / "CGROUP" / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "CGROUP" / folder / "cpu.stat").write_text(content, encoding="ascii")


@pytest.fixture
def cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cores:
    return Cores(tmp_path, monkeypatch)


def test_what_others_took_of_the_cores_that_a_process_may_use(cores: Cores) -> None:
    cores.tell(0.0, 0.0, 1000)
    before = process.CpuTimes.now()
    cores.tell(2.0, 1.5, 1000 + 190, 6, elsewhere=5000)
    use = process.CpuUse.since(before)
    assert (use.other, use.stolen, use.throttled) == (pytest.approx(0.2), pytest.approx(0.03), None)
    both = use + process.CpuUse(2.0, 0.0, 0.0, 0.0)
    assert (both.other, both.stolen, both.throttled) == (pytest.approx(0.1), pytest.approx(0.015), None)


@pytest.mark.parametrize(
    ("line", "folder", "content"),
    [
        ("0::/my.slice/job", "my.slice/job", "usage_usec 5\nthrottled_usec {usec}\n"),
        ("0::/outside", ".", "usage_usec 5\nthrottled_usec {usec}\n"),  # a container sees its own group at the top
        ("2:cpu,cpuacct:/docker/a", "cpu,cpuacct/docker/a", "nr_throttled 1\nthrottled_time {nsec}\n"),
    ],
)
def test_a_limit_that_holds_the_process_is_seen(cores: Cores, line: str, folder: str, content: str) -> None:
    found = []
    for seconds in (3, 3.5):
        cores.tell(2 * seconds, seconds, 100)
        cores.group(line, folder, content.format(usec=int(seconds * 1e6), nsec=int(seconds * 1e9)))
        found.append(process.CpuTimes.now())
    assert found[1].throttled_s == 3.5
    use = process.CpuUse.since(found[0])
    assert use.throttled == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "folder", "files", "left_mb"),
    [
        ("0::/", ".", {"memory.max": "max", "memory.current": "1", "memory.stat": "anon 1"}, 4000),
        ("0::/outside", ".", {"memory.max": f"{900 * 2**20}", "memory.current": f"{500 * 2**20}",
                              "memory.stat": f"anon 1\ninactive_file {100 * 2**20}"}, 500),
        ("0::/job/step", "job", {"memory.max": f"{900 * 2**20}", "memory.current": f"{500 * 2**20}",
                                 "memory.stat": "anon 1"}, 400),
        ("4:memory:/a", "memory/a", {"memory.limit_in_bytes": f"{900 * 2**20}",
                                     "memory.usage_in_bytes": f"{950 * 2**20}",
                                     "memory.stat": f"total_inactive_file {150 * 2**20}"}, 100),
        ("4:memory:/a", "memory/a", {"memory.limit_in_bytes": f"{2**63 - 4096}", "memory.usage_in_bytes": "1",
                                     "memory.stat": "cache 1"}, 4000),
        ("nonsense", ".", {}, 4000),
    ],
)  # fmt: skip
def test_memory_is_what_the_machine_has_or_the_control_group_leaves(
    cores: Cores, line: str, folder: str, files: dict[str, str], left_mb: float
) -> None:
    cores.group(line, folder, "usage_usec 5\n")
    for name, content in files.items():
        (cores.root / "CGROUP" / folder / name).write_text(content + "\n", encoding="ascii")
    (cores.root / "PROC" / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable: {4000 * 1024} kB\n", encoding="ascii")
    assert process.available_mb() == left_mb


def test_a_system_that_tells_nothing_is_held_against_no_one(cores: Cores) -> None:
    use = process.CpuUse.since(process.CpuTimes.now())
    assert (use.other, use.stolen, use.throttled) == (None, None, None)
    assert invalid_reasons(replace(GOOD, cpu=use)) == []


def test_the_clock_of_the_busiest_core_is_read(cores: Cores) -> None:
    folder = cores.root / "CPUS" / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_cur_freq").write_text("3300000\n", encoding="ascii")
    assert process.ProcessCounters().read().values["cpu_clock_mhz"] == 3300
    (folder / "scaling_cur_freq").write_text("nothing\n", encoding="ascii")
    assert "cpu_clock_mhz" in process.ProcessCounters().read().gaps


def test_a_measurement_beside_a_busy_process_is_invalid_and_says_by_how_much(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both cores taken by something else made times five times as long, and rows that said VALID."""
    clean(monkeypatch, others=None)
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        (record,) = measure("method=full-batching", "num_prompts=96", "batch_size=8", "repeats=4")
    finally:
        for each in load:
            each.kill()
            each.wait()
    row = record.row
    assert row.valid is False
    assert "other processes used" in str(row.invalid_reasons)
    assert row.other_cpu_pct is not None
    assert 10 < row.other_cpu_pct <= 100


def test_a_quiet_run_on_a_cpu_is_valid_however_short(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(monkeypatch)
    (record,) = measure("method=full-batching")
    row = record.row
    assert (row.valid, row.invalid_reasons, row.utilization_valid) == (True, None, False)
    assert (row.mean_utilization_pct, row.max_utilization_pct) == (None, None)
    assert row.notes == "too few averaging windows for a utilization"
    assert row.seconds_per_batch_mean


def clean(monkeypatch: pytest.MonkeyPatch, dirty: bool | None = False, others: float | None = 0.0) -> None:
    """Nothing but what a test is about speaks against a measurement: tests share the machine with each other."""
    if others is not None:
        monkeypatch.setattr(process.CpuUse, "since", lambda _: process.CpuUse(1.0, others))
    monkeypatch.setattr(validity, "UNSETTLED", 1e9)
    real = runner.machine.manifest
    monkeypatch.setattr(runner.machine, "manifest", lambda device: real(device) | {"git_dirty": dirty})


def test_a_loop_gives_short_passes_enough_windows_and_no_times(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(monkeypatch)
    short = ["method=full-batching", "sampler_interval_s=0.1", "rerun=true"]
    (without,) = measure(*short)
    assert without.row.utilization_valid is False
    assert without.row.utilization_loop_s is None
    assert (without.row.valid, without.row.mean_utilization_pct) == (True, None)
    (looped,) = measure(*short, "utilization_loop_s=5")
    row = looped.row
    assert (row.utilization_valid, row.valid, row.invalid_reasons) == (True, True, None)
    assert row.utilization_windows == 5
    assert row.utilization_loop_s is not None
    assert 0.4 <= row.utilization_loop_s < 4
    assert row.max_utilization_std_pct is None
    assert row.mean_utilization_pct is not None
    assert row.mean_utilization_pct > 10
    assert len(looped.samples) == len(without.samples) == 2 * 3
    assert (row.energy_j, row.temperature_max_c, row.throttle_reasons, row.other_gpu_processes) == (None,) * 4
    (cut,) = measure(*short, "utilization_loop_s=0.05")
    assert cut.row.utilization_valid is False
    assert cut.row.utilization_loop_s is not None


def test_a_loop_that_fails_leaves_the_times_standing(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, times = turns.timed_batch, []

    def failing(*arguments: Any) -> Any:
        times.append(1)
        if len(times) > 2 + 2 * 3:  # past warm-up, less what verification ran, and both repeats
            raise RuntimeError("lost")
        return real(*arguments)

    monkeypatch.setattr(turns, "timed_batch", failing)
    (record,) = measure("method=full-batching", "utilization_loop_s=5", "sampler_interval_s=1")
    assert record.row.status == "ok"
    assert record.row.seconds_per_batch_mean is not None
    assert "the loop for utilization ended early (RuntimeError: lost)" in capsys.readouterr().err


def test_a_dirty_tree_and_swap_are_in_the_record(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(monkeypatch, dirty=True)
    monkeypatch.setattr(turns.PeakMemory, "read", lambda *_: Peak(resident_mb=9.0, swapped_mb=3.0))
    (record,) = measure("method=full-batching")
    assert record.row.valid is False
    reasons = str(record.row.invalid_reasons).split("; ")
    assert reasons[-2:] == ["the source tree has uncommitted changes", "3.0 MB of the process were swapped out"]


def test_a_method_that_failed_is_neither_valid_nor_invalid(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("lost")

    monkeypatch.setattr(turns, "timed_batch", failing)
    (record,) = measure("method=full-batching")
    assert (record.row.status, record.row.valid) == ("error", None)


def test_tables_say_what_is_valid_and_why_the_rest_is_not() -> None:
    rows = [
        Row(method="prepacking", packing="ffd", metric="prefill", valid=True, utilization_valid=True),
        Row(method="full-batching", metric="prefill", valid=False, utilization_valid=True, invalid_reasons="a; b"),
    ]
    assert words.validity(rows) == ["INVALID: full-batching: a; b", "VALID: all others"]
    assert words.validity(rows[:1]) == ["VALID: prepacking"]
    assert comparison_table(rows).endswith("VALID: all others")
    rows[0].notes, rows[1].notes = "x; y", "y"
    assert words.validity(rows)[-2:] == ["note: prepacking: x", "note: prepacking, full-batching: y"]
    both = [replace(rows[1], dataset=name, metric="ttft") for name in ("mmlu", "alpaca")]
    assert words.validity([*both, both[0]])[:2] == [
        "INVALID: full-batching, mmlu: a; b", "INVALID: full-batching, alpaca: a; b"
    ]  # fmt: skip


def test_a_record_from_before_this_verdict_is_read_and_nothing_is_said(
    measure: Callable[..., list[Record]], tmp_path: Path
) -> None:
    (record,) = measure("method=full-batching")
    path = tmp_path / "results" / record.row.run_id / "record.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content["row"]) > NEW
    content["row"] = {name: value for name, value in content["row"].items() if name not in NEW}
    path.write_text(json.dumps(content), encoding="utf-8")
    old = records.read(path.parent).row
    assert {getattr(old, name) for name in NEW} == {None}
    assert "VALID" not in comparison_table([old])
