"""vLLM, driven through a pipe: JSON lines in, JSON lines out. Runs in vLLM's own environment (``make vllm-env``).

The first line in is the set-up, answered by ``{"ready": …}``. Each further line is ``{"prompts": [[token id, …], …]}``,
answered by ``{"seconds": …, "first_tokens": […]}``: the seconds are read here, around the generation alone. What goes
wrong is ``{"error": …}``, or ``{"missing": …}`` where vLLM cannot be imported, and the end. driver.py is the
other side. This file imports nothing of the project.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

GRACE_S = 20  # to finish what is running once nobody listens any more


def main() -> int:
    """Serve until standard input ends; 0 then, 1 after an error."""
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
            llm = vllm.LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                enable_prefix_caching=False,
                **setup["options"],
            )
            one_token = vllm.SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
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


def _read(requests: Any, lines: queue.Queue[str | None]) -> None:
    for line in requests:
        lines.put(line)
    lines.put(None)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)  # the parent is gone or gave up: leave no process of vLLM's behind


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


if __name__ == "__main__":
    sys.exit(main())
