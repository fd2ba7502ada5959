"""vLLM as a process of its own: the protocol, against a small stand-in for the package, which CI does not have."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, draw_prompts
from transformers import AutoConfig

from src.measure.timer import PhaseTimer
from src.prefilling.vllm import driver
from src.prefilling.vllm.driver import Missing, Vllm, WorkerError
from src.records.store import Record

LENGTHS = [5, 1, 9]
STAND_IN = """
import gc, json, os, pathlib, sys, time
__version__ = "0.0-stand-in"
BEHAVES = os.environ.get("STAND_IN", "")
if BEHAVES == "no import":
    raise ImportError("operator torchvision::nms does not exist")
print("noise on standard output")
print("noise on standard error", file=sys.stderr)
os.system("echo noise of a child process")


class SamplingParams:
    def __init__(self, max_tokens, temperature, ignore_eos, detokenize):
        assert (max_tokens, temperature, ignore_eos, detokenize) == (1, 0.0, True, False)


class Output:
    def __init__(self, token):
        self.outputs = [type("Completion", (), {"token_ids": [token]})]


class LLM:
    def __init__(self, model, load_format, skip_tokenizer_init, enable_prefix_caching, **options):
        if BEHAVES == "does not start":
            raise ValueError("this shape is not supported")
        if BEHAVES == "memory":
            raise RuntimeError("Engine core initialization failed: CUDA out of memory")
        config = json.loads(pathlib.Path(model, "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"], config
        assert (load_format, skip_tokenizer_init, enable_prefix_caching) == ("dummy", True, False)
        assert options["dtype"] == "float32", options
        self.options, self.vocabulary = options, config["vocab_size"]
        time.sleep(0.3)

    def generate(self, prompts, sampling, use_tqdm):
        assert gc.get_freeze_count(), "a collection of all that was imported would fall into the time"
        assert isinstance(sampling, SamplingParams)
        assert not use_tqdm
        lengths = [len(prompt["prompt_token_ids"]) for prompt in prompts]
        assert max(lengths) < self.options["max_model_len"]
        assert sum(lengths) <= self.options["max_num_batched_tokens"]
        assert len(lengths) <= self.options["max_num_seqs"]
        if BEHAVES == "dies":
            print("Segmentation fault in a kernel", file=sys.stderr, flush=True)
            os._exit(11)
        if BEHAVES == "hangs":
            time.sleep(60)
        if BEHAVES == "core dies":
            print("(EngineCore pid=7) ERROR [core.py:1] ValueError: the reason", file=sys.stderr)
            print("(Worker pid=8) ERROR a traceback of its own\\n" * 100, file=sys.stderr, flush=True)
            raise RuntimeError("EngineDeadError: see stack trace (above)")
        if BEHAVES == "fails":
            raise RuntimeError("no free pages")
        time.sleep(0.05)
        print("noise while serving")
        return [Output(sum(prompt["prompt_token_ids"]) % self.vocabulary) for prompt in prompts]
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start an engine on the stand-in, which behaves as told; it is closed at the end."""
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    (tmp_path / "torch.py").write_text("__version__ = '9.9'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("VLLM_PYTHON", sys.executable)
    started = []

    def make(behaves: str = "", **options: Any) -> Vllm:
        monkeypatch.setenv("STAND_IN", behaves)
        shape = AutoConfig.for_model(**TINY)
        engine = Vllm(shape, torch.float32, torch.device("cpu"), [LENGTHS, [3]], threads=1, **options)
        started.append(engine)
        return engine

    yield make
    for engine in started:
        engine.close()


def processes_of(group: int) -> dict[int, str]:
    """State letters of the processes of a process group, by process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group:
            found[int(path.parent.name)] = state
    return found


def test_a_batch_is_served_and_timed_by_the_worker(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine, prompts, timer = start(), draw_prompts(LENGTHS), PhaseTimer(torch.device("cpu"))
    for _ in range(2):
        timer.start()
        done = engine.prefill(prompts, timer)
        phases = timer.stop()
    assert done.first_tokens == [int(ids.sum()) % TINY["vocab_size"] for ids in prompts]
    assert (done.computed_tokens, set(phases)) == (sum(LENGTHS), {"forward"})
    assert 0.05 <= done.measured_seconds < phases["forward"]  # the pipe and JSON are not in it
    assert engine.attention == "its own (vllm 0.0-stand-in, torch 9.9)"
    engine.close()
    assert capfd.readouterr() == ("", "")  # its noise is not the user's


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads process states in /proc")
def test_its_processes_rest_between_batches_and_are_gone_after_the_end(start: Any) -> None:
    engine = start()
    group = engine._process.pid
    engine.prefill(draw_prompts(LENGTHS), PhaseTimer(torch.device("cpu")))
    end = time.monotonic() + 5
    while set(processes_of(group).values()) != {"T"} and time.monotonic() < end:
        time.sleep(0.01)  # a process stops when it next gets a core
    assert set(processes_of(group).values()) == {"T"}
    engine.close()
    engine.close()
    assert processes_of(group) == {}
    with pytest.raises(WorkerError, match="closed"):
        engine.prefill(draw_prompts(LENGTHS), PhaseTimer(torch.device("cpu")))


@pytest.mark.parametrize(
    ("behaves", "words"),
    [
        ("dies", r"ended \(exit code 11\).*Segmentation fault in a kernel"),
        ("hangs", "no answer within 0.5 s"),
        ("fails", "RuntimeError: no free pages"),
        ("core dies", r"EngineDeadError.*its first error: \(EngineCore pid=7\).*ValueError: the reason"),
    ],
)
def test_what_goes_wrong_in_a_batch_is_an_exception_and_ends_its_processes(
    start: Any, behaves: str, words: str
) -> None:
    engine = start(behaves, timeout_s=0.5)
    group = engine._process.pid
    driver.CLOSE_S, before = 0.2, driver.CLOSE_S
    try:
        with pytest.raises(WorkerError, match=f"(?s){words}"):
            engine.prefill(draw_prompts(LENGTHS), PhaseTimer(torch.device("cpu")))
    finally:
        driver.CLOSE_S = before
    assert processes_of(group) == {}


@pytest.mark.parametrize(
    ("behaves", "kind", "words"),
    [
        ("no import", Missing, "torchvision::nms does not exist.*make vllm-env"),
        ("does not start", WorkerError, "this shape is not supported"),
        ("memory", MemoryError, "out of memory"),
    ],
)
def test_what_goes_wrong_at_the_start_has_its_reason(start: Any, behaves: str, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=f"(?s){words}"):
        start(behaves)


@pytest.mark.parametrize("line", ["hello", "[1]", '{"seconds": 1}', '{"seconds": 1, "first_tokens": [1]}'])
def test_nonsense_in_place_of_an_answer(start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"""
import sys
sys.stdin.readline()
print('{{"ready": true, "vllm": "1", "torch": "2"}}', flush=True)
for _ in sys.stdin:
    print({line!r}, flush=True)
""")
    monkeypatch.setattr(driver, "WORKER", worker)
    engine = start()
    with pytest.raises(WorkerError, match="it answered"):
        engine.prefill(draw_prompts(LENGTHS), PhaseTimer(torch.device("cpu")))


def test_no_environment_is_said_in_words(start: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(Missing, match=r"VLLM_PYTHON=.*make vllm-env"):
        start()
    monkeypatch.delenv("VLLM_PYTHON")
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    with pytest.raises(Missing, match=r"there is no \.venv-vllm.*make vllm-env"):
        start()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads process states in /proc")
def test_a_killed_parent_leaves_no_stopped_processes(start: Any) -> None:
    read, write = os.pipe()
    if (parent := os.fork()) == 0:
        os.write(write, str(start()._process.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    group, deadline = int(os.read(read, 20)), time.monotonic() + 30
    while processes_of(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(group) == {}


def test_batches_that_nothing_verified_are_warmed_up_each(
    start: Any, monkeypatch: pytest.MonkeyPatch, measure: Callable[..., list[Record]]
) -> None:
    start()  # so that the stand-in behaves
    served: list[int] = []
    prefill = Vllm.prefill
    monkeypatch.setattr(Vllm, "prefill", lambda *of: (served.append(len(of[1])), prefill(*of))[1])
    (record,) = measure("method=vllm", "metric=ttft", "warmup=1", "repeats=1", "verify_batches=1")
    assert (record.row.status, record.row.num_batches) == ("ok", 3)
    assert len(served) == 2 * 3
