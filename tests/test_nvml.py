"""The real path into the driver's library: pynvml loads a stub that fails, throttles or hangs as told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY_OVERRIDES
from launcher import finished

OURS = "11111111-aaaa-bbbb-cccc-111111111111"  # the second GPU that the stub has
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, this machine has none")
# What each call of the driver fills.
FILLS = {
    "nvmlDeviceGetUtilizationRates": {"utilization_pct": 93, "memory_utilization_pct": 31},
    "nvmlDeviceGetMemoryInfo": {"device_memory_mb": 400},
    "nvmlDeviceGetComputeRunningProcesses_v3": {
        "process_memory_mb": 250, "other_processes": 0, "other_processes_mb": 0,
    },
    "nvmlDeviceGetPowerUsage": {"power_w": 650},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_j": 5000},
    "nvmlDeviceGetClockInfo": {"sm_clock_mhz": 1980, "memory_clock_mhz": 2619},
    "nvmlDeviceGetTemperature": {"temperature_c": 67},
    "nvmlDeviceGetCurrentClocksEventReasons": {"clock_event_reasons": 0},
}  # fmt: skip
EVERYTHING: dict[str, float] = {name: value for filled in FILLS.values() for name, value in filled.items()}
CODES = {3: "Not Supported", 4: "Insufficient Permissions", 15: "GPU is lost", 999: "Unknown Error", 77: "stub"}
START = """
import json, os, sys, threading, time
from src.measure.nvml import NoCounters, NvmlCounters
from src.measure.sampler import Sampler, gpu_counters
tell = lambda **told: os.environ.update({f"NVML_STUB_{key}": str(value) for key, value in told.items()})
show = lambda value: print(json.dumps(value))
"""


def built_stub(folder: Path) -> Path:
    """The folder, with a freshly compiled libnvidia-ml.so.1 in it."""
    assert COMPILER
    # By its own name, so that who asks for the name later is given the one that is loaded already.
    named = "-Wl,-soname,libnvidia-ml.so.1"
    made, source = folder / "libnvidia-ml.so.1", ROOT / "tests" / "nvml_stub.c"
    built = ["-shared", "-fPIC", "-Wall", named, "-o", str(made), str(source)]
    subprocess.run([COMPILER, *built], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_stub(tmp_path_factory.mktemp("nvml"))


def tried(library: Path, script: str, timeout: float = 60, **told: str) -> Any:
    """What a script shows that is run, after START, in a process whose driver's library is the stub."""
    # Loaded once, it is what the name stands for from then on.
    loaded = f"import ctypes\nctypes.CDLL({str(library / 'libnvidia-ml.so.1')!r})\n"
    environment = {f"NVML_STUB_{key}": told[key] for key in told}
    done = finished(script=loaded + START + script, timeout=timeout, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_compiler
def test_the_gpu_is_found_by_uuid_and_not_its_neighbour(library: Path) -> None:
    seen = tried(
        library,
        f"""
import pynvml
counters = NvmlCounters("{OURS}")
first = pynvml.nvmlDeviceGetHandleByIndex(0)
reading = counters.read()
slice_ = NvmlCounters("22222222-aaaa-bbbb-cccc-222222222222")
show([counters.uuid, counters.driver, counters.power_limit_w, reading.values, reading.gaps,
      pynvml.nvmlDeviceGetUtilizationRates(first).gpu, slice_.uuid, slice_.read().values["power_w"]])
""",
    )
    assert seen[:3] == [f"GPU-{OURS}", "999.1", 700]
    assert seen[3] == EVERYTHING
    assert seen[4] == {}
    assert seen[5] == 1  # what a look-up by index would have measured
    assert seen[6:] == ["MIG-22222222-aaaa-bbbb-cccc-222222222222", 300]


@needs_compiler
def test_each_call_that_fails_leaves_exactly_its_fields_out_with_the_reason(library: Path) -> None:
    seen = tried(
        library,
        f"""
counters, found = NvmlCounters("{OURS}"), []
for call in {list(FILLS)}:
    for code in {list(CODES)}:
        tell(FAIL=f"{{call}}={{code}}")
        reading = counters.read()
        found.append([call, code, reading.values, reading.gaps])
tell(FAIL="")
show([found, counters.read().gaps])
""",
    )
    assert len(seen[0]) == len(FILLS) * len(CODES)
    for call, code, values, gaps in seen[0]:
        assert set(values) == set(EVERYTHING) - set(FILLS[call]), (call, code)
        assert set(gaps) == set(FILLS[call]), (call, code)
        assert all(CODES[code] in reason for reason in gaps.values()), gaps
    assert seen[1] == {}


@needs_compiler
def test_a_driver_that_lacks_a_version_or_a_limit_is_still_read(library: Path) -> None:
    script = f"""
counters = NvmlCounters("{OURS}")
show([counters.driver, counters.power_limit_w, counters.gaps, len(counters.read().values)])
"""
    fails = "nvmlSystemGetDriverVersion=999,nvmlDeviceGetEnforcedPowerLimit=3"
    gaps = {"driver": "Unknown Error", "power_limit_w": "Not Supported"}
    assert tried(library, script, FAIL=fails) == [None, None, gaps, len(EVERYTHING)]
    # Older drivers know the clock-event reasons by another name (13: function not found).
    older = tried(library, script, FAIL="nvmlDeviceGetCurrentClocksEventReasons=13")
    assert older[3] == len(EVERYTHING)


@needs_compiler
def test_throttling_others_and_lost_counters_are_told_of_a_span(library: Path) -> None:
    seen = tried(
        library,
        f"""
from dataclasses import asdict
spans = []
with Sampler(NvmlCounters("{OURS}"), 0.01) as sampler:
    for told in ({{}}, {{"REASONS": 0x1 | 0x4 | 0x40, "OTHERS": 2}}, {{"FAIL": "nvmlDeviceGetPowerUsage=15"}},
                 {{"HIDE": 1}}, {{"HIDE": 0, "UNKNOWN": 1}}):
        time.sleep(0.05)
        start = time.perf_counter()
        if "FAIL" in told:
            time.sleep(0.1)
        tell(**told)
        time.sleep(0.15)
        spans.append(asdict(sampler.usage(start if "FAIL" in told else start + 0.03, time.perf_counter())))
show(spans)
""",
    )
    quiet, busy, lost, hidden, unknown = seen
    assert quiet["throttle_reasons"] == []
    too_short = {"energy_j": "0.1 s of readings are too short to tell energy"}
    assert (quiet["other_processes"], quiet["gaps"], quiet["mean_power_w"]) == (0, too_short, 650)
    assert busy["throttle_reasons"] == ["hardware thermal slowdown", "software power cap"]
    assert (busy["other_processes"], busy["other_processes_mb"]) == (2, 200)
    assert lost["mean_power_w"] == 650  # of the readings that there are: a gap is not a zero
    assert lost["gaps"]["power_w"].startswith("GPU is lost (in ")
    assert hidden["other_processes"] is None
    assert "does not list this process" in hidden["gaps"]["other_processes"]
    assert unknown["other_processes"] == 2
    assert "does not say" in unknown["gaps"]["process_memory_mb"]


@needs_compiler
def test_clocks_that_rise_after_idling_are_told_from_those_that_dip(library: Path) -> None:
    seen = tried(
        library,
        f"""
spans = []
for clocks in ("345,1200,1980", "1980,1980,1500,1980"):
    tell(CLOCKS=clocks)
    with Sampler(NvmlCounters("{OURS}"), 0.01) as sampler:
        start = time.perf_counter()
        time.sleep(0.15)
    usage = sampler.usage(start, time.perf_counter())
    spans.append([usage.rising_sm_clock_mhz, usage.min_sm_clock_mhz, usage.max_sm_clock_mhz])
show(spans)
""",
    )
    assert seen == [[345, 1980, 1980], [None, 1500, 1980]]


@needs_compiler
def test_a_serving_engine_of_ones_own_is_no_other_process(library: Path, tmp_path: Path) -> None:
    """It stands still while other methods are timed, and only its memory is held."""
    seen = tried(
        library,
        f"""
import subprocess
from pathlib import Path
counters = NvmlCounters("{OURS}")
engine = subprocess.Popen(["sh", "-c", "sleep 30 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
worker = int(engine.stdout.readline())
found = []
for pid in (engine.pid, worker, os.getppid()):
    Path("{tmp_path}", str(pid)).touch()
    found.append(counters.read().values["other_processes"])
os.kill(worker, 9)
engine.wait()
show(found)
""",
        CONTEXTS=str(tmp_path),
    )
    assert seen == [0, 0, 1]


@needs_compiler
def test_a_call_that_hangs_holds_nothing_up_and_is_told(library: Path) -> None:
    seen = tried(
        library,
        f"""
began = time.perf_counter()
with Sampler(NvmlCounters("{OURS}"), 0.01) as sampler:
    time.sleep(0.1)
    tell(HANG="nvmlDeviceGetTemperature")
    time.sleep(2.3)
    usage = sampler.usage(began, time.perf_counter())
    leaving = time.perf_counter()
left = time.perf_counter() - leaving
tell(HANG="nvmlDeviceGetHandleByUUID")
asking = time.perf_counter()
nothing = gpu_counters(lambda: "{OURS}", answer_s=0.3)
show([left, usage.gaps, usage.mean_power_w, sampler.failure, time.perf_counter() - asking, nothing.reason])
""",
    )
    left, gaps, power_w, failure, asked, reason = seen
    assert left < 3
    assert gaps["sampler"].startswith("hung: a reading has not returned for 2.")
    assert power_w == 650
    assert failure.startswith("hung: a reading did not return within ")
    assert asked < 2
    assert reason == "the driver did not answer within 0.3 s"


@needs_compiler
@pytest.mark.parametrize(
    ("code", "name"),
    [("9", "DriverNotLoaded"), ("4", "NoPermission"), ("999", "Unknown"), ("18", "LibRmVersionMismatch")],
)
def test_a_driver_that_does_not_start_is_no_counters_with_the_reason(library: Path, code: str, name: str) -> None:
    script = f"""
found = gpu_counters(lambda: "{OURS}")
show([found.source, found.reason, found.read().gaps])
"""
    source, reason, gaps = tried(library, script, FAIL=f"nvmlInitWithFlags={code}")
    assert source == "none"
    assert reason.startswith(f"NVMLError_{name}")
    assert gaps == {"all counters": reason}


def test_no_library_and_no_such_gpu_are_no_counters_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library", encoding="ascii")  # hides a real one
    # A file that is none stands before the driver's own, where there is one, for a process that has loaded neither.
    script = f'{START}found = gpu_counters(lambda: "{OURS}")\nshow([found.source, found.reason])'
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=True)
    source, reason = json.loads(done.stdout)
    assert source == "none"
    assert "NVMLError_LibraryNotFound: NVML Shared Library Not Found" in reason


@needs_compiler
def test_a_gpu_that_is_not_there_is_no_counters_with_the_reason(library: Path) -> None:
    assert tried(library, 'show(gpu_counters(lambda: "5678").reason)') == "NVMLError_NotFound: Not Found"


COMPARISON = """
from src.compose import compose
from src.measure import runner, turns
from src.measure.plan import prepare
real, told = turns._timed_pass, {told}
def noted(*arguments):
    if arguments[4][0] == 1:
        tell(**told)
    return real(*arguments)
runner.counters_for, turns._timed_pass = lambda *devices: NvmlCounters("{ours}"), noted
record = runner.measure(prepare(compose({overrides})))[0]
from dataclasses import asdict
show([asdict(record.row), record.manifest])
"""


@needs_compiler
def test_a_comparison_outlives_a_driver_that_fails_or_hangs_in_its_midst(library: Path, tmp_path: Path) -> None:
    overrides = [*TINY_OVERRIDES, "method=full-batching", "repeats=3", "sampler_interval_s=0.01", "num_prompts=150",
                 f"results_dir={tmp_path}", "rerun=true"]  # fmt: skip
    lost: dict[str, str] = {"FAIL": "nvmlDeviceGetClockInfo=15", "REASONS": "0x20", "OTHERS": "1"}
    row, _ = tried(library, COMPARISON.format(told=lost, ours=OURS, overrides=overrides), timeout=120)
    assert row["status"] == "ok"
    assert row["sm_clock_mean_mhz"] == 1980
    assert "sm_clock_mhz: GPU is lost" in row["telemetry_gaps"]
    assert row["energy_j"] is None  # its passes are shorter than the counter's steps allow
    assert "too short to tell energy" in row["telemetry_gaps"]
    assert (row["device_memory_used_mb"], row["temperature_max_c"], row["memory_clock_mean_mhz"]) == (400, 67, 2619)
    assert (row["throttle_reasons"], row["other_gpu_processes"]) == ("software thermal slowdown", 1)
    assert row["valid"] is False
    assert "the GPU was throttled (software thermal slowdown); 1 other process on the GPU" in row["invalid_reasons"]
    hung = {"HANG": "nvmlDeviceGetPowerUsage"}
    script = COMPARISON.format(told=hung, ours=OURS, overrides=[*overrides, "sampler_overhead_s=1.6"])
    row, manifest = tried(library, script, timeout=120)
    assert row["status"] == "ok"
    assert row["power_mean_w"] == 650
    assert "sampler: " in row["telemetry_gaps"]
    assert manifest["sampler_overhead_pct"] is None
    assert "hung" in manifest["sampler_overhead_missing"]
