"""What makes a measurement INVALID: each rule by itself, in records, and in what a report shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.measure import records, runner
from src.measure.memory import Peak
from src.measure.records import Record
from src.measure.row import Row
from src.measure.sampler import RISE_S, _rising
from src.measure.validity import Evidence, invalid_reasons, notes_of
from src.report.tables import comparison_table, notes

GOOD = Evidence(
    pass_seconds=[1.02, 1.0, 0.99, 1.01], utilization_valid=True, sm_clocks_mhz=(1900, 1980), other_processes=0,
    tree_dirty=False, swapped_mb=0.0,
)  # fmt: skip
NEW = {
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
        ({"utilization_valid": False}, "too few utilization windows"),
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
    everything = replace(
        GOOD, sm_clocks_mhz=(1, 2), throttle_reasons=["x"], other_processes=1, pass_seconds=[2, 1, 1],
        utilization_valid=False, tree_dirty=True, swapped_mb=1.0,
    )  # fmt: skip
    assert len(invalid_reasons(everything)) == 7


def test_a_data_centre_gpus_ordinary_state_is_a_note_and_no_reason() -> None:
    capped = replace(GOOD, throttle_reasons=["software power cap"])
    assert (invalid_reasons(capped), notes_of(capped)) == ([], ["the GPU was held by its software power cap"])
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


def clean(monkeypatch: pytest.MonkeyPatch, dirty: bool | None = False) -> None:
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
    assert (without.row.valid, without.row.invalid_reasons) == (False, "too few utilization windows")
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
    real, times = runner._timed_batch, []

    def failing(*arguments: Any) -> Any:
        times.append(1)
        if len(times) > 2 + 2 * 3:  # past warm-up, less what verification ran, and both repeats
            raise RuntimeError("lost")
        return real(*arguments)

    monkeypatch.setattr(runner, "_timed_batch", failing)
    (record,) = measure("method=full-batching", "utilization_loop_s=5", "sampler_interval_s=1")
    assert record.row.status == "ok"
    assert record.row.seconds_per_batch_mean is not None
    assert "the loop for utilization ended early (RuntimeError: lost)" in capsys.readouterr().err


def test_a_dirty_tree_and_swap_are_in_the_record(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(monkeypatch, dirty=True)
    monkeypatch.setattr(runner.PeakMemory, "read", lambda self: Peak(resident_mb=9.0, swapped_mb=3.0))
    (record,) = measure("method=full-batching")
    assert record.row.valid is False
    reasons = str(record.row.invalid_reasons).split("; ")
    assert reasons[-2:] == ["the source tree has uncommitted changes", "3.0 MB of the process were swapped out"]


def test_a_method_that_failed_is_neither_valid_nor_invalid(
    measure: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("lost")

    monkeypatch.setattr(runner, "_timed_batch", failing)
    (record,) = measure("method=full-batching")
    assert (record.row.status, record.row.valid) == ("error", None)


def test_tables_say_what_is_valid_and_why_the_rest_is_not() -> None:
    rows = [
        Row(method="prepacking", packing="ffd", metric="prefill", valid=True, utilization_valid=True),
        Row(method="full-batching", metric="prefill", valid=False, utilization_valid=True, invalid_reasons="a; b"),
    ]
    assert notes(rows) == ["INVALID: full-batching: a; b", "VALID: prepacking"]
    assert comparison_table(rows).endswith("VALID: prepacking")
    rows[0].notes, rows[1].notes = "x; y", "y"
    assert notes(rows)[-2:] == ["note: prepacking: x", "note: prepacking, full-batching: y"]


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
