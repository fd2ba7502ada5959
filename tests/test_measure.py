"""The measuring parts one by one: clock, sampler, peak memory, statistics, devices."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_prompts
from hypothesis import given
from hypothesis import strategies as st

from src import provenance
from src.cli import UserError
from src.compose import compose
from src.config import Config
from src.jobs.duration import in_words
from src.measure import machine, memory_checks, turns
from src.measure.memory import PeakMemory
from src.measure.memory_checks import leave_out_what_cannot_fit
from src.measure.nvml import HARMLESS_REASONS, NoCounters, NvmlCounters, Reading, throttle_names
from src.measure.outcome import Run
from src.measure.overhead import sampler_overhead
from src.measure.plan import Plan, prepare
from src.measure.process import ProcessCounters
from src.measure.rates import matmul_rate
from src.measure.sampler import Sampler
from src.measure.timer import PhaseTimer
from src.measure.work import ForwardSettings, memory_bytes
from src.prefilling.models import find_model
from src.prefilling.shape import Shape

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

        def read(self) -> Reading:
            raise OSError("gone")

        def windows(self, seconds: float, readings: int) -> int:
            return readings

    with Sampler(Failing(), 0.01) as sampler:
        time.sleep(0.05)
    assert sampler.failure == "OSError: gone"
    assert sampler.usage(0, time.perf_counter()).mean_utilization_pct is None


class Telling:
    """Counters that give the readings they are told, over and over."""

    source, window_s = "nvml", 0.0

    def __init__(self, *readings: Reading) -> None:
        self.readings = itertools.cycle(readings)

    def read(self) -> Reading:
        return next(self.readings)

    def windows(self, seconds: float, readings: int) -> int:
        return readings


def test_a_counter_that_stops_midway_is_a_gap_and_never_a_zero() -> None:
    there, lost = Reading({"power_w": 600.0}), Reading(gaps={"power_w": "GPU is lost"})
    with Sampler(Telling(there, lost), 0.005) as sampler:
        start = time.perf_counter()
        time.sleep(0.1)
        usage = sampler.usage(start, time.perf_counter())
    assert usage.mean_power_w == 600
    assert usage.gaps["power_w"].startswith("GPU is lost (in ")
    assert usage.max_temperature_c is None
    assert usage.throttle_reasons is None


def test_energy_is_the_counters_rise_scaled_to_the_span() -> None:
    sampler = Sampler(Telling(Reading()), 1)
    sampler._readings = [(float(at), Reading({"energy_j": 9000 + 50.0 * at})) for at in range(1, 5)]
    assert sampler.usage(0.5, 4.5).energy_j == pytest.approx(50 * 4)
    assert sampler.usage(0.5, 1.5).gaps["energy_j"] == "a single reading tells no difference"
    assert sampler.usage(0.5, 2.2).gaps["energy_j"] == "1.0 s of readings are too short to tell energy"
    assert sampler.usage(0.5, 2.2).energy_j is None
    assert sampler.usage(8, 9.5).gaps == {"sampler": "no reading within 1.50 s"}
    sampler._readings.append((5.0, Reading({"energy_j": 1.0})))
    assert sampler.usage(0.5, 5.5).gaps["energy_j"] == "the counter went backwards"
    assert sampler.usage(0.5, 5.5).energy_j is None


@given(st.integers(0, 2**40))
def test_every_bit_of_the_clock_event_reasons_has_a_name(mask: int) -> None:
    names = throttle_names(mask)
    assert len(names) == (mask & ~HARMLESS_REASONS).bit_count() == len(set(names))
    assert throttle_names(HARMLESS_REASONS) == ()


def test_nvml_windows_are_of_the_longest_averaging_time() -> None:
    assert NvmlCounters.windows(None, seconds=3.5, readings=30) == 3  # type: ignore[arg-type]
    assert NvmlCounters.windows(None, seconds=30, readings=4) == 4  # type: ignore[arg-type]


def test_without_counters_the_reason_is_the_gap() -> None:
    with Sampler(NoCounters("NVMLError_LibraryNotFound"), 0.01) as sampler:
        start = time.perf_counter()
        time.sleep(0.05)
        usage = sampler.usage(start, time.perf_counter())
    assert usage.gaps == {"all counters": "NVMLError_LibraryNotFound"}
    assert (usage.valid, usage.windows, usage.source) == (False, 0, "none")


def test_the_samplers_cost_is_measured_in_turns() -> None:
    found = sampler_overhead(CPU, ProcessCounters(), interval_s=0.02, seconds=0.8)
    if found["sampler_overhead_pct"] is None:
        pytest.skip(f"not measured: {found['sampler_overhead_missing']}")
    assert found["sampler_overhead_pairs"] >= 5
    assert found["sampler_overhead_readings"] >= 5
    assert 0 < found["sampler_reading_ms"] < 20
    assert found["sampler_overhead_low_pct"] <= found["sampler_overhead_pct"] <= found["sampler_overhead_high_pct"]


def test_a_reading_that_holds_the_interpreter_costs_its_whole_time() -> None:
    class Costly(ProcessCounters):
        def read(self) -> Reading:
            until = time.perf_counter() + 0.004
            while time.perf_counter() < until:  # holds the interpreter, as a counter must not
                pass
            return super().read()

    found = sampler_overhead(CPU, Costly(), interval_s=0.1, seconds=3)
    if found["sampler_overhead_pct"] is None:
        pytest.skip(f"not measured: {found['sampler_overhead_missing']}")
    assert found["sampler_reading_ms"] >= 4
    assert found["sampler_overhead_high_pct"] > 2  # of 100 ms, 4 are lost
    assert found["sampler_overhead_pct"] < 12


def test_a_machine_too_busy_to_tell_the_cost_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    real = torch.mm

    def slower(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        time.sleep(0 if next(calls) < 120 else 0.05)  # fast while the work is sized, then the machine gets busy
        return real(a, b)

    monkeypatch.setattr(torch, "mm", slower)
    start = time.perf_counter()
    found = sampler_overhead(CPU, ProcessCounters(), interval_s=0.02, seconds=0.4)
    assert time.perf_counter() - start < 4
    assert found["sampler_overhead_pct"] is None
    assert "too busy" in found["sampler_overhead_missing"]


def test_a_cost_that_cannot_be_measured_is_none_with_the_reason() -> None:
    class Failing(ProcessCounters):
        def read(self) -> Reading:
            raise OSError("gone")

    for interval_s, seconds, counters, why in (
        (0.1, 0.0, ProcessCounters(), "switched off"),
        (10.0, 1.6, ProcessCounters(), "hold only 0 pairs"),
        (0.01, 0.4, Failing(), "the sampler stopped (OSError: gone)"),
    ):
        found = sampler_overhead(CPU, counters, interval_s, seconds)
        assert found["sampler_overhead_pct"] is None
        assert why in found["sampler_overhead_missing"]


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
    shape = Shape.of(find_model(compose(["model=llama2-7b", "model.weights=random"]).model).config)
    # Weights other than embeddings and norms, twice per token; attention over one token is 4 x layers x width.
    assert shape.layer_parameters == 6_476_005_376
    assert shape.operations(1, 1, 0) == 2 * 6_476_005_376 + 4 * 32 * 4096
    assert shape.operations(2, 10, 5) - shape.operations(2, 10, 0) == 2 * 5 * 4096 * 32_000
    # 7B in half precision: 13.2 GB of weights less the second embedding, half a megabyte of KV a token.
    assert shape.bytes(1, 1, 0, 2) - shape.bytes(1, 0, 0, 2) == 524_288


def test_rates_and_durations_in_words() -> None:
    assert matmul_rate(CPU, torch.float32) > 1e8
    assert (in_words(12.4), in_words(300), in_words(40_000)) == ("12 s", "5 min", "11 h")


def test_a_tree_without_a_repository_is_of_the_commit_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    assert "git_commit_given" not in machine.manifest(CPU)
    monkeypatch.setenv(provenance.GIVEN_COMMIT, "0123456789" * 4)
    made = machine.manifest(CPU)
    assert (made["git_commit"], made["git_commit_given"], made["git_dirty"]) == ("0123456789" * 4, True, None)
    # A tree may be carried over a checkout of another commit, from which it then differs.
    monkeypatch.setattr(provenance, "_git", lambda *asked: "a" * 40 if asked[0] == "rev-parse" else " M src/run.py")
    made = machine.manifest(CPU)
    assert (made["git_commit"], made["git_commit_given"], made["git_dirty"]) == ("0123456789" * 4, True, None)
    monkeypatch.setenv(provenance.GIVEN_COMMIT, "a" * 40)  # what the checkout says itself needs nobody's word
    made = machine.manifest(CPU)
    assert (made["git_commit"], "git_commit_given" in made, made["git_dirty"]) == ("a" * 40, False, True)
    monkeypatch.setenv(provenance.GIVEN_COMMIT, "main")
    with pytest.raises(UserError, match="PREPACK_BENCH_COMMIT: 'main'; give the 40 hex digits"):
        machine.manifest(CPU)


GPU = torch.device("cuda", 0)


def on_a_gpu_of(megabytes: float, monkeypatch: pytest.MonkeyPatch, *plans: Plan) -> list[Run]:
    """Plans as if they were for a GPU, of which this much is free."""
    free = int(megabytes * 2**20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    return [Run(replace(plan, devices=(GPU,))) for plan in plans]


def test_what_cannot_fit_on_a_gpu_is_not_tried(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("methods=[full-batching,prepacking,continuous-batching]", "attention=segments", "num_prompts=12")
    small, large = (prepare(tiny_config(*settings, f"batch_size={size}")) for size in (1, 12))
    shape, method = Shape.of(large.source.config), large.methods[1].method
    lengths = [large.prompts.lengths[batch].tolist() for batch in large.methods[1].batches]
    settings = ForwardSettings.of(replace(large, devices=(GPU,)), method)
    needed = max(memory_bytes(shape, method, each, settings) for each in lengths) / 2**20
    # Padded rows hold more while they are computed, and what an engine holds is its own choice.
    for fraction, statuses in ((9, ["ok"] * 3), (1.1, ["oom", "ok", "ok"]), (0.9, ["oom", "oom", "ok"])):
        tried = on_a_gpu_of(fraction * needed, monkeypatch, small, large)
        for run in tried:
            leave_out_what_cannot_fit(run)
        assert [outcome.status for outcome in tried[0].outcomes] == ["ok"] * 3
        assert [outcome.status for outcome in tried[1].outcomes] == statuses
    without = prepare(tiny_config("method=prepacking+flash"))  # a kernel that is missing is told later, as its own row
    (run,) = on_a_gpu_of(1000, monkeypatch, without)
    leave_out_what_cannot_fit(run)
    assert run.outcomes[0].status == "ok"
    four, plain = (replace(large.config, loadbit=bits) for bits in ("4", "none"))
    runs = on_a_gpu_of(1, monkeypatch, replace(large, config=four), replace(large, config=plain))
    least = [memory_checks._least_bytes(run.plan, run.outcomes[0]) for run in runs]
    assert least[1] - least[0] == pytest.approx(shape.layer_parameters * 3.5)  # of 4 bytes a weight half a byte is left


def test_on_a_cpu_pads_that_are_never_written_are_not_held_against_a_batch(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long prompt among short ones, by parts: most of its padded cache is pages that are never touched."""
    arguments = ("method=full-batching", "num_prompts=12", "batch_size=12", "max_tokens_per_forward=60")
    plan = prepare(tiny_config(*arguments))
    plan.prompts.token_ids[:] = draw_prompts([900, *[4] * 11])
    run = Run(plan)
    shape = Shape.of(plan.source.config)
    padded_mb, useful_mb = (shape.bytes(1, tokens, 12, 4) / 2**20 for tokens in (12 * 900, 900 + 11 * 4))
    monkeypatch.setattr("src.measure.process.available_mb", lambda: (padded_mb + useful_mb) / 2)
    leave_out_what_cannot_fit(run)
    assert run.outcomes[0].status == "ok"
    monkeypatch.setattr("src.measure.process.available_mb", lambda: 0.9 * useful_mb)
    leave_out_what_cannot_fit(run)
    assert run.outcomes[0].status == "oom"


def test_before_a_pass_on_a_gpu_the_batch_of_most_computed_positions_runs(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a padded method it's the one with the longest prompt, though another may hold more useful tokens."""
    ran: list[list[int]] = []
    monkeypatch.setattr(turns, "timed_batch", lambda plan, outcome, timer, batch, bins: ran.append(list(batch)))
    plan = prepare(tiny_config("methods=[full-batching,padding-free]", "num_prompts=6", "batch_size=3"))
    shuffled = [[0, 1, 2], [3, 4, 5]]
    plan.prompts.token_ids[:] = draw_prompts([9, 9, 9, 12, 1, 1])
    plan.shuffled[:] = [np.array(batch) for batch in shuffled]
    padded, free = Run(replace(plan, devices=(GPU,))).outcomes
    padded.assignment = replace(padded.assignment, batches=plan.shuffled, shapes=[(3, 9), (3, 12)])
    free.assignment = replace(free.assignment, batches=plan.shuffled, shapes=[(3, 9), (3, 5)])
    for outcome in (padded, free):
        turns._settle(replace(plan, devices=(GPU,)), outcome, PhaseTimer(CPU))
    assert ran == [shuffled[1], shuffled[0]]


def test_what_an_engine_beside_holds_is_no_memory_of_a_methods(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = on_a_gpu_of(1, monkeypatch, prepare(tiny_config("methods=[prepacking,continuous-batching]")))
    run.outcomes[1].holds_mb = 700.0
    assert [run.held_beside_mb(outcome) for outcome in run.outcomes] == [700.0, 0.0]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1000 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 1200 * 2**20)
    peak = PeakMemory(GPU).read(run.held_beside_mb(run.outcomes[0]))
    assert (peak.allocated_mb, peak.reserved_mb) == (300.0, 1200.0)
