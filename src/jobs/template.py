"""The process that measuring processes are forked from: it has imported what they need, and computes nothing itself.

Importing takes longer than many a measurement. A fork of a process that has imported everything, and has neither
started a thread pool nor touched a GPU, is as clean as a new process, and is there at once. ``apart.py`` starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .. import terminal
from ..cli import BAD_INPUT, EXIT_INTERRUPTED, UserError, print_whatever_there_is, ran_out_of_memory, report
from ..config import Config

EXIT_CRASHED = 70
EXIT_FAILED = 71  # a method failed and has its row; a library that ends the process may do so with 1
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when the parent ends for whatever reason (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(EXIT_INTERRUPTED)


def limit_memory(megabytes: int | None) -> None:
    """Make allocations of this process beyond ``megabytes`` fail, so that they become rows and the machine survives.

    Counts the process's private writable memory (RLIMIT_DATA), not mapped files or the GPU's.
    """
    if megabytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def main() -> int:
    """Fork for each configuration that comes in, and tell the parent what became of it."""
    print_whatever_there_is()
    connection, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    end_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        from . import worker  # here, so that a faulty file in added/ ends in one line
    except UserError as error:
        return report(error)
    gc.freeze()  # so that garbage collection in a fork does not copy the memory that it shares with this process
    with connection, connection.makefile("rw", encoding="utf-8") as pipe:
        while line := pipe.readline():
            template = os.getpid()
            if not (child := os.fork()):
                connection.close()
                end_with_parent(template)
                return _measured(worker.measure_and_print, **json.loads(line))
            pipe.write(f"{child}\n")
            pipe.flush()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            pipe.write(f"{code}\n")
            pipe.flush()
    return 0


def _measured(measure: Any, config: dict[str, Any], pending: str, plan: str | None, progress: bool) -> int:
    """In the fork: measure, and write down what went wrong.

    Args:
        plan: a file with the pickled plan, where the parent has made it.
        progress: whether the program that asks for it draws a line of progress meanwhile.
    """
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), config))
    assert isinstance(typed, Config)
    limit_memory(typed.memory_limit_mb)
    path = Path(pending)
    try:
        with terminal.progress_line(progress):
            failed = measure(typed, pickle.loads(Path(plan).read_bytes()) if plan else None, path)
            return EXIT_FAILED if failed else 0
    except BAD_INPUT as error:
        return report(error)
    except Exception as error:
        if ran_out_of_memory(error) and typed.memory_limit_mb is not None and not path.exists():
            used_up = f"{typed.memory_limit_mb:,} MB are used up before prompts are loaded"
            return report(UserError("memory_limit_mb", used_up, "give more, or leave it out"))
        with terminal.progress_line(progress):
            terminal.make_room()
        traceback.print_exc()
        status = "oom" if ran_out_of_memory(error) else "error"
        reason = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(content | {"status": status, "reason": reason}), encoding="utf-8")
        return EXIT_CRASHED


if __name__ == "__main__":
    sys.exit(main())
