"""vllm, driven as a process in an environment of its own (``make vllm-env``), since it pins its own torch."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ... import places
from ..method import Prefilled, Timer, TokenIds
from ..packing import Bins
from ..shape import Shape

ROOT = places.CHECKOUT or Path()  # what `make vllm-env` sets up, or else what lies in the current folder
WORKER = places.PACKAGE / "prefilling" / "vllm" / "worker.py"
PAGE_TOKENS = 128  # tokens in a page of its cache: its default on CPU; on a GPU 16 to 64
FREE_SHARE = 0.9  # of the GPU's free memory it may ask for
CLOSE_S = 20.0
LOG_BYTES = 200_000  # of the end of what it wrote, to look for its first error in


class Missing(Exception):
    """vLLM's environment is not there, or vLLM cannot be imported in it: the method is skipped, for this reason."""


class WorkerError(RuntimeError):
    """The worker failed, died, answered nonsense, or gave no answer in time."""


class Vllm:
    """A warm vLLM with random weights of the model's shape; ``prefill`` serves one batch, one new token per prompt.

    Its weights are not ours, so its first tokens cannot be checked against ours. Settings are
    vLLM's defaults but for: no reuse of prefixes, a forward that holds the largest batch, a cache that holds it too
    (not most of the memory), as many threads as here. Between batches its processes are stopped (SIGSTOP): one
    of them keeps a core busy for a second after a batch, while other methods are timed.

    Attributes:
        attention: not known from outside; names its versions.
    """

    attention = "vLLM's own"

    def __init__(
        self,
        config: PretrainedConfig,
        dtype: torch.dtype,
        device: torch.device,
        batches: Sequence[Sequence[int]],
        threads: int,
        start_timeout_s: float = 900.0,
        timeout_s: float = 600.0,
        asynchronous: bool = False,
    ) -> None:
        """Start vLLM and wait until it is ready; compiling can take minutes the first time.

        Args:
            config: the model's shape; weights are made up.
            batches: lengths of the prompts of each batch that will be served, in tokens.
            threads: of its matrix products on a CPU.
            start_timeout_s, timeout_s: seconds for starting, and for one batch.
            asynchronous: start its asynchronous engine, for ``serve``, in place of the one for ``prefill``.

        Raises:
            Missing: there is no environment with vLLM in it.
            WorkerError: it did not start; the message ends with what it wrote last.
            MemoryError: memory ran out while it started.
        """
        self._process: subprocess.Popen[bytes] | None = None
        self._timeout_s = timeout_s
        options = _options(config, dtype, device, batches)
        python = _python()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, what vLLM prints; closed in close()
        self._process = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | _environment(device, threads),
            process_group=0,  # a group of its own, to signal all its processes
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        try:
            shape = _as_json(config, options["max_model_len"])
            setup = {"config": shape, "options": options, "asynchronous": asynchronous}
            ready = self._ask(setup, start_timeout_s)
            self.attention = f"its own (vllm {ready['vllm']}, torch {ready['torch']})"
        except KeyError:
            raise self._failed("it answered in another format") from None
        except BaseException:
            self.close()
            raise

    def prefill(self, prompts: Sequence[TokenIds], t: Timer, bins: Bins | None = None) -> Prefilled:
        """Serve one batch. ``forward`` is all of its time, as the worker read it: ``measured_seconds``.

        Args:
            prompts: int64 [length] each.

        Raises:
            WorkerError: the worker failed, died, answered nonsense or took too long. The engine is closed.
            MemoryError: memory ran out in the worker. The engine is closed.
        """
        if self._process is None:
            raise WorkerError("vLLM is closed")
        token_ids = [ids.tolist() for ids in prompts]
        try:
            answer = self._ask({"prompts": token_ids}, self._timeout_s)
            seconds, first_tokens = float(answer["seconds"]), [int(token) for token in answer["first_tokens"]]
            if len(first_tokens) != len(prompts):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise self._failed("it answered in another format") from None
        except BaseException:
            self.close()
            raise
        t.lap("forward")
        return Prefilled(None, None, None, first_tokens, sum(map(len, token_ids)), 1, measured_seconds=seconds)

    def serve(self, prompts: Sequence[TokenIds], arrivals_s: Sequence[float] | NDArray[np.float64]) -> list[float]:
        """Serve prompts as they come, handed to vLLM's asynchronous engine in its process, as ``Serving.serve`` says.

        Raises:
            WorkerError, MemoryError: as for ``prefill``, but for the whole of it.
        """
        if self._process is None:
            raise WorkerError("vLLM is closed")
        content = {"prompts": [ids.tolist() for ids in prompts], "arrivals_s": [float(at_s) for at_s in arrivals_s]}
        try:
            answer = self._ask(content, self._timeout_s + content["arrivals_s"][-1])
            found = [float(at_s) for at_s in answer["first_tokens_s"]]
            if len(found) != len(prompts):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise self._failed("it answered in another format") from None
        except BaseException:
            self.close()
            raise
        return found

    def close(self) -> None:
        """End vLLM's processes. A second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        _signal(process, signal.SIGCONT)
        with suppress(OSError):
            process.stdin.close()  # the worker leaves by itself then
        _wait(process)
        _signal(process, signal.SIGKILL)  # whoever is left of its group
        process.wait()
        self._log.close()

    def _ask(self, content: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        _signal(process, signal.SIGCONT)
        try:
            process.stdin.write(json.dumps(content).encode() + b"\n")
            process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            raise self._failed(f"it gave no answer within {timeout_s:g} s") from None
        if line is None:
            raise self._failed(f"it ended (exit code {_wait(process)})")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._failed(f"it answered {line[:100]!r}")
        if "missing" in answer:
            raise Missing(f"vLLM cannot be imported by {_python()} ({answer['missing']}); `make vllm-env` sets it up")
        if "error" in answer:
            _wait(process)  # until its traceback is in the log
            raise self._failed(str(answer["error"]))
        _signal(process, signal.SIGSTOP)
        return answer

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self._lines.put(line)
        self._lines.put(None)

    def _failed(self, problem: str) -> Exception:
        """The exception for ``problem``, with vLLM's first error and what it wrote last; its processes are ended."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LOG_BYTES))
        written = self._log.read().decode(errors="replace")
        self.close()
        lines = [line.strip() for line in written.splitlines() if line.strip()]
        # When one of its processes dies, the tracebacks of the others come after the reason and do not tell it.
        first = next((f"its first error: {line[:300]}; " for line in lines if "ERROR" in line), "")
        message = f"vLLM: {problem}; {first}it wrote last: {' | '.join(lines)[-600:] or 'nothing'}"
        out = ("OutOfMemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory")
        return MemoryError(message) if any(sign in problem + written for sign in out) else WorkerError(message)


def installed() -> bool:
    """Whether there is an environment for vLLM."""
    with suppress(Missing):
        return bool(_python())
    return False


def _python() -> Path:
    """The Python of vLLM's environment. Raises Missing."""
    named = os.environ.get("VLLM_PYTHON")
    python = Path(named) if named else ROOT / ".venv-vllm" / "bin" / "python"
    if not python.is_file():
        where = f"VLLM_PYTHON={named} is not a file" if named else "there is no .venv-vllm"
        raise Missing(f"vLLM has no environment here ({where}); `make vllm-env` makes one")
    return python


def _options(
    config: PretrainedConfig, dtype: torch.dtype, device: torch.device, batches: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What is given to ``vllm.LLM`` beside the model, so that the largest batch fits into one forward and the cache."""
    longest = max(max(lengths) for lengths in batches) + 1  # and the new token
    tokens = max(sum(lengths) for lengths in batches)
    pages = max(sum(math.ceil((length + 1) / PAGE_TOKENS) for length in lengths) for lengths in batches) + 4
    token_bytes = Shape.of(config).kv_width * dtype.itemsize
    options: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": longest,
        "max_num_seqs": max(len(lengths) for lengths in batches),
        "max_num_batched_tokens": max(tokens, longest),
        "kv_cache_memory_bytes": pages * PAGE_TOKENS * token_bytes,
    }
    if device.type == "cuda":  # it checks that this share is free, and our models lie on the same device
        free, total = torch.cuda.mem_get_info(device)
        options["gpu_memory_utilization"] = round(FREE_SHARE * free / total, 3)
    return options


def _environment(device: torch.device, threads: int) -> dict[str, str]:
    """No network, no usage statistics, and on a CPU the same number of cores as this process computes with."""
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if device.type == "cpu":
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, allowed[:threads]))
    elif device.index is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device.index] if visible else str(device.index)
    return environment


def _as_json(config: PretrainedConfig, longest: int) -> dict[str, Any]:
    content = json.loads(config.to_json_string(use_diff=False))
    content["max_position_embeddings"] = max(config.max_position_embeddings, longest)  # for the one new token
    content["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]  # a random shape names none
    return content


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, None where the process goes on beyond ``CLOSE_S``."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(CLOSE_S)
    return None
