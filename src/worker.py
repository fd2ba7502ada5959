"""The process that measures, and the template that it is forked from: ``python -m src.worker``, started by apart.py."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.cli import BAD_INPUT, EXIT_INTERRUPTED, UserError, print_whatever_there_is, report
from src.config import Config, as_dict
from src.measure import records
from src.measure.records import Record

EXIT_CRASHED = 70
PR_SET_PDEATHSIG = 1
PRELOADED = (
    "src.forecast",
    "src.measure.runner",
    "src.measure.summary",
    "src.report.tables",
    "src.hub",
    "pandas",
    "yaml",
)


def measure(config: Config, pending: Path | None = None) -> int:
    """Measure one configuration in this process and print its table. Returns 0, or 1 where a method failed.

    Args:
        pending: where to leave the rows that stand if this process never comes back.
    """
    from src.forecast import Forecast
    from src.hub import GatedError
    from src.measure import gpus  # after --help and bad settings: torch takes seconds to import
    from src.measure.duration import in_words
    from src.measure.machine import manifest, pick_device
    from src.measure.plan import prepare, results_dir_of
    from src.measure.runner import run
    from src.measure.summary import failed_before_planning, to_records
    from src.report.tables import comparison_table, title

    gpus.open_here(pick_device(config.device))
    try:
        plan = prepare(config)
    except GatedError as error:
        for record in failed_before_planning(config, "gated", str(error)):
            records.write(record, results_dir_of(config))
        raise
    if pending:
        write_pending(pending, plan.results_dir, to_records(plan, manifest(plan.device), as_dict(plan.config)))
    if config.rerun or plan.recorded() is None:
        time = in_words(Forecast(plan.results_dir).seconds(plan))
        print(f"measuring {', '.join(config.compared_methods)}: about {time}", flush=True)
    rows = [record.row for record in run(plan)]
    print(f"\n{title(rows[0])}\n\n{comparison_table(rows)}\n\nrecords: {plan.results_dir}", flush=True)
    return int(any(row.status not in {"ok", "skipped"} for row in rows))


def write_pending(path: Path, results_dir: Path, rows: list[Record], reason: str | None = None) -> None:
    """Leave rows for the parent to complete."""
    content = {
        "results_dir": str(results_dir.resolve()),
        "records": [asdict(record) for record in rows],
        "reason": reason,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when the parent is gone, however that came about (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel was asked
        os._exit(EXIT_INTERRUPTED)


def limit_memory(megabytes: int | None) -> None:
    """Let allocations of this process beyond ``megabytes`` fail, so that they become rows instead of a dead machine.

    Counts the process's private writable memory (RLIMIT_DATA), not mapped files or the GPU's.
    """
    if megabytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))


def main() -> int:
    """The template: fork for each configuration that comes in, and tell the parent what became of it."""
    print_whatever_there_is()
    connection, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    end_with_parent(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for name in PRELOADED:
            importlib.import_module(name)
    except UserError as error:  # a file of a method that was added
        return report(error)
    gc.freeze()  # a collection in a fork then leaves the pages that it shares with this process alone
    with connection, connection.makefile("rw", encoding="utf-8") as pipe:
        while line := pipe.readline():
            template = os.getpid()
            if not (child := os.fork()):
                connection.close()
                end_with_parent(template)
                return _measured(**json.loads(line))
            pipe.write(f"{child}\n")
            pipe.flush()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            pipe.write(f"{code}\n")
            pipe.flush()
    return 0


def _measured(config: dict[str, Any], pending: str) -> int:
    """In the fork: measure, and leave word of what went wrong."""
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), config))
    assert isinstance(typed, Config)
    limit_memory(typed.memory_limit_mb)
    path = Path(pending)
    try:
        return measure(typed, path)
    except BAD_INPUT as error:
        return report(error)
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(content | {"reason": f"{type(error).__name__}: {error}"}), encoding="utf-8")
        return EXIT_CRASHED


if __name__ == "__main__":
    sys.exit(main())
