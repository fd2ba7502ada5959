"""The measuring parts one by one: clock, sampler, peak memory, statistics, devices."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.cli import UserError
from src.config import compose
from src.measure import machine
from src.measure.estimate import Shape, in_words, matmul_rate
from src.measure.memory import PeakMemory
from src.measure.sampler import NoCounters, NvmlCounters, ProcessCounters, Sampler
from src.measure.timer import PhaseTimer
from src.prefill.models import find_model

CPU = torch.device("cpu")


def test_phases_fill_the_whole_span() -> None:
    timer = PhaseTimer(CPU)
    timer.start()
    time.sleep(0.02)
    timer.lap("plan")
    time.sleep(0.05)
    timer.lap("forward")
    timer.lap("plan")
    phases = timer.stop()
    assert list(phases) == ["plan", "forward"]
    assert phases["plan"] == pytest.approx(0.02, abs=0.015)
    assert phases["forward"] == pytest.approx(0.05, abs=0.02)
    assert sum(phases.values()) == pytest.approx(timer.host_seconds, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, this machine has none")
def test_device_events_and_the_host_clock_agree() -> None:
    timer, a = PhaseTimer(torch.device("cuda:0")), torch.randn(4096, 4096, device="cuda:0")
    for _ in range(2):
        timer.start()
        for _ in range(50):
            a @ a
        timer.lap("forward")
        phases = timer.stop()
    assert phases["forward"] == pytest.approx(timer.host_seconds, rel=0.02)


def test_the_sampler_sees_a_busy_process_and_an_idle_one() -> None:
    counters = ProcessCounters()
    with Sampler(counters, 0.02) as sampler:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.4:
            pass
        middle = time.perf_counter()
        time.sleep(0.4)
        end = time.perf_counter()
    busy, idle = sampler.usage(start, middle), sampler.usage(middle, end)
    assert busy.mean_utilization_pct is not None
    assert idle.mean_utilization_pct is not None
    assert busy.mean_utilization_pct > 4 * idle.mean_utilization_pct
    assert busy.max_memory_mb is not None
    assert busy.max_memory_mb > 50
    assert busy.valid
    assert sampler.usage(end, end).windows == 0
    assert not sampler.usage(end, end).valid
    assert threading.active_count() < 50


def test_a_failing_counter_ends_telemetry_and_nothing_else() -> None:
    class Failing:
        source = "failing"

        def read(self) -> dict[str, float]:
            raise OSError("gone")

        def windows(self, seconds: float, readings: int) -> int:
            return readings

    with Sampler(Failing(), 0.01) as sampler:
        time.sleep(0.05)
    assert sampler.failure == "OSError: gone"
    assert sampler.usage(0, time.perf_counter()).mean_utilization_pct is None


def fake_nvml(asked: list[str]) -> Any:
    class NVMLError(Exception):
        pass

    def unsupported(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    def handle_by_uuid(uuid: str) -> str:
        asked.append(uuid)
        return uuid

    return SimpleNamespace(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetHandleByUUID=handle_by_uuid,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=93, memory=20),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=1, usedGpuMemory=5)],
        nvmlDeviceGetPowerUsage=unsupported,
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 3201}[kind],
    )  # fmt: skip


def test_nvml_finds_the_gpu_by_uuid_and_leaves_gaps_with_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(asked))
    counters = NvmlCounters("1234-5678")
    assert asked == ["GPU-1234-5678"]
    assert counters.read() == {"utilization_pct": 93.0, "sm_clock_mhz": 1980.0, "memory_clock_mhz": 3201.0}
    assert counters.gaps["power_w"] == "Not Supported"
    assert "does not list this process" in counters.gaps["memory_mb"]
    assert counters.power_limit_w == 700
    assert counters.windows(seconds=3.5, readings=30) == 3


def test_without_counters_every_field_is_a_gap() -> None:
    counters = NoCounters("NVMLError_LibraryNotFound")
    assert counters.read() == {}
    assert set(counters.gaps.values()) == {"NVMLError_LibraryNotFound"}


def test_peak_memory_is_that_of_the_span_alone() -> None:
    memory = PeakMemory(CPU)
    memory.reset()
    block = torch.ones(64 * 2**20 // 4)
    del block
    first = memory.read()
    memory.reset()
    second = memory.read()
    if first.resident_mb is None:
        pytest.skip("this system does not let a process reset its memory high-water mark")
    assert first.resident_before_mb is not None
    assert second.resident_mb is not None
    assert first.resident_mb - first.resident_before_mb == pytest.approx(64, abs=12)
    assert first.resident_mb - second.resident_mb > 50


def test_devices_that_are_not_there_are_refused() -> None:
    assert machine.pick_device("cpu") == CPU
    with pytest.raises(UserError, match=r"device: unknown 'tpu'"):
        machine.pick_device("tpu")
    if not torch.cuda.is_available():
        assert machine.pick_device("auto") == CPU
        with pytest.raises(
            UserError, match=r"device: 'cuda' asked, but this torch is built without CUDA|sees no CUDA GPU"
        ):
            machine.pick_device("cuda")


def test_the_manifest_tells_what_ran_and_nothing_private() -> None:
    made = machine.manifest(CPU)
    assert made["packages"]["torch"] == torch.__version__
    assert made["cpu_cores"] >= 1
    assert len(made["code_hash"]) == 12
    assert str(Path.home()) not in str(made)
    assert machine.machine_slug(CPU).startswith("cpu-")
    assert machine.machine_slug(CPU) == machine.machine_slug(CPU).lower()


def test_operations_are_those_of_the_model() -> None:
    shape = Shape.of(find_model(compose(["model=llama2-7b", "model.weights=random"])[0].model).config)
    # Weights other than embeddings and norms, twice per token; attention over one token is 4 x layers x width.
    assert shape.layer_parameters == 6_476_005_376
    assert shape.operations(1, 1, 0) == 2 * 6_476_005_376 + 4 * 32 * 4096
    assert shape.operations(2, 10, 5) - shape.operations(2, 10, 0) == 2 * 5 * 4096 * 32_000
    # 7B in half precision: 13.2 GB of weights less the second embedding, half a megabyte of KV a token.
    assert shape.bytes(1, 1, 0, 2) - shape.bytes(1, 0, 0, 2) == 524_288


def test_rates_and_durations_in_words() -> None:
    assert matmul_rate(CPU, torch.float32) > 1e8
    assert (in_words(12.4), in_words(300)) == ("12 s", "5 min")
