"""The GPU belongs to the process that measures: no parent opens one, whatever it has to know of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_OVERRIDES
from test_nvml import OURS, built_stub, needs_compiler

from src.records import store as records

# A GPU where there is none, for every process below: who opens it leaves a file named after its process, which the
# driver's stub lists. What measures then computes on the CPU.
FAKE = f"""
import os, sys, types
from pathlib import Path

import torch

mine = Path(os.environ["NVML_STUB_CONTEXTS"])

def opened(*_):
    (mine / str(os.getpid())).touch()

def properties(*_):
    opened()
    return types.SimpleNamespace(name="NVIDIA Fake", total_memory=80 * 2**30, uuid="{OURS}", major=9, minor=0)

torch.cuda.device_count = lambda: 1
torch.cuda.is_available = lambda: True
torch.cuda.is_initialized = lambda: (mine / str(os.getpid())).exists()
torch.cuda.init = torch.cuda._lazy_init = opened
torch.cuda.set_device = lambda _: opened()
torch.cuda.get_device_properties = properties
torch.cuda.get_device_name = lambda *_: properties().name
if "src.measure.gpus" in sys.orig_argv:
    import src.measure.rates

    src.measure.rates.usual_rate = lambda *_: 1e9
if "src.jobs.template" in sys.orig_argv:
    import dataclasses

    import src.jobs.worker, src.measure.nvml, src.measure.runner

    measure = src.jobs.worker.measure_and_print

    def on_the_cpu(config, plan, pending):  # the parent planned for the GPU that is none
        opened()
        return measure(config, dataclasses.replace(plan, devices=(torch.device("cpu"),)), pending)

    src.jobs.worker.measure_and_print = on_the_cpu
    src.measure.nvml.WINDOW_S = 0.001
    src.measure.runner.counters_for = lambda *_: src.measure.nvml.NvmlCounters("{OURS}")
"""
PARENT = """
import os, sys
import torch
from src import reproduce
from src.jobs import in_time, reproducing

small = sys.argv[1:]
reproducing.sweep = lambda name, common: [[*small, *common, f"batch_size={size}"] for size in (4, 3, 2)]
measure, left = in_time.run_apart, []

def measured(*arguments):
    left.append(torch.cuda.is_initialized())
    if len(left) == 3:
        torch.cuda.get_device_name()  # what no parent may do: the last comparison shows what it would cost
    return measure(*arguments)

in_time.run_apart = measured
sys.argv[1:] = ["experiment=today", "scale=gpu", "minutes=2", f"results_dir={os.environ['RESULTS']}"]
code = reproduce.main()
assert left == [False] * 3, left
sys.exit(code)
"""


@needs_compiler
@pytest.mark.slow
def test_a_parent_opens_no_gpu_and_so_its_rows_are_valid(tmp_path: Path) -> None:
    results, contexts = tmp_path / "results", tmp_path / "contexts"
    contexts.mkdir()
    (tmp_path / "sitecustomize.py").write_text(FAKE, encoding="utf-8")
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(built_stub(tmp_path)), "NVML_STUB_CONTEXTS": str(contexts), "RESULTS": str(results),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]),
    }  # fmt: skip
    small = [*TINY_OVERRIDES, "isolate=true", "dtype=float32", "sampler_interval_s=0.01", "num_prompts=40"]
    done = subprocess.run(
        [sys.executable, "-c", PARENT, *small, "methods=[full-batching,prepacking]"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "gpu scale on NVIDIA Fake" in done.stdout  # which only an open GPU tells: a child was asked
    assert "today: 3 comparisons, about" in done.stdout
    found = {batch: [r.row for r in records.read_all(results) if r.row.batch_size == batch] for batch in (4, 3, 2)}
    for batch, rows in found.items():
        assert [row.status for row in rows] == ["ok", "ok"]
        for row in rows:
            assert row.other_gpu_processes == (1 if batch == 4 else 0)
            others = (
                "the source tree has uncommitted",
                "other processes used",
            )  # of the processor: tests run side by side
            told = [reason for reason in (row.invalid_reasons or "").split("; ") if reason]
            reasons = {reason for reason in told if not reason.startswith(others)}
            assert reasons == ({"1 other process on the GPU"} if batch == 4 else set())
