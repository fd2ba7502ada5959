"""vLLM, driven through a pipe: JSON lines in, JSON lines out. Runs in vLLM's own environment (``make vllm-env``).

The first line in is the set-up, answered by ``{"ready": …}``. Each further line is ``{"prompts": [[token id, …], …]}``,
answered by ``{"seconds": …, "first_tokens": […]}``: the seconds are read here, around the generation alone. With
``"asynchronous": true`` in the set-up a line is ``{"prompts": …, "arrivals_s": …}``, answered by
``{"first_tokens_s": …}``: each prompt is handed to vLLM's asynchronous engine when it is due, and seconds count from
the line on. What goes wrong is ``{"error": …}``, or ``{"missing": …}`` where vLLM cannot be imported, and the
end. driver.py is the other side. This file imports nothing of the project.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE_S = 20  # to finish what is running once nobody listens any more
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until standard input ends; 0 then, 1 after an error."""
    # driver.py stops this process between batches. If it dies then, the kernel has this process go on, so that it reads
    # the end of its requests and leaves (Linux).
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    # vLLM and its processes print to standard output, so it becomes standard error, and the pipes get other numbers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        setup = json.loads(lines.get() or "null")
        if setup is None:
            return 0
        try:
            import torch
            import vllm

            vllm.LLM, vllm.SamplingParams  # noqa: B018, they are imported when they are first named
        except Exception as error:  # ImportError, or what a package of another torch raises at import
            answer(missing=_one_line(error))
            return 1
        with tempfile.TemporaryDirectory(prefix="vllm-model-") as folder:
            Path(folder, "config.json").write_text(json.dumps(setup["config"]), encoding="utf-8")
            options = {"model": folder, "load_format": "dummy", "skip_tokenizer_init": True,
                       "enable_prefix_caching": False, **setup["options"]}  # fmt: skip
            one_token = vllm.SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
            if setup.get("asynchronous"):
                asyncio.run(_serve(vllm, options, one_token, lines, answer))
                return 0
            llm = vllm.LLM(**options)
            _spare_collections()
            answer(ready=True, vllm=vllm.__version__, torch=torch.__version__)
            while (line := lines.get()) is not None:
                prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)["prompts"]]
                start = time.perf_counter()
                outputs = llm.generate(prompts, one_token, use_tqdm=False)
                seconds = time.perf_counter() - start
                answer(seconds=seconds, first_tokens=[int(output.outputs[0].token_ids[0]) for output in outputs])
    except Exception as error:
        answer(error=_one_line(error))
        raise  # the traceback is for the log
    return 0


async def _serve(
    vllm: Any, options: dict[str, Any], one_token: Any, lines: queue.Queue[str | None], answer: Any
) -> None:
    """Serve arrivals with the asynchronous engine, which is what vLLM's server drives."""
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
    _spare_collections()
    answer(ready=True, vllm=vllm.__version__, torch=torch.__version__)
    served = 0
    while (line := await asyncio.to_thread(lines.get)) is not None:
        asked = json.loads(line)
        began = time.perf_counter()

        async def one(ids: list[int], due_s: float, request: str) -> float:
            await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))  # noqa: B023, awaited within the turn
            async for _ in engine.generate({"prompt_token_ids": ids}, one_token, request):
                pass
            return time.perf_counter() - began  # noqa: B023

        requests = zip(asked["prompts"], asked["arrivals_s"], strict=True)
        found = await asyncio.gather(*(one(*each, f"{served + number}") for number, each in enumerate(requests)))
        served += len(found)
        answer(first_tokens_s=found)
    engine.shutdown()


def _spare_collections() -> None:
    """Leave what was made so far out of Python's collections of garbage, as vLLM's server does.

    A full one takes over half a second, and would fall into the wait of whoever comes first.
    """
    gc.collect()
    gc.freeze()


def _read(requests: Any, lines: queue.Queue[str | None]) -> None:
    for line in requests:
        lines.put(line)
    os.killpg(0, signal.SIGCONT)  # vLLM's other processes, which may still be stopped
    lines.put(None)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)  # the parent is gone or gave up: leave no process of vLLM's behind


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


if __name__ == "__main__":
    sys.exit(main())
