"""A configuration in a process of its own: what it leaves behind, or dies of, does not reach the next one.

The parent composes settings, has a child forked from a template process and sleeps until it ends. The child measures,
writes its records and prints its table. Before it starts, it leaves rows as they would stand if it never came back; the
parent completes and writes them where the child was killed, crashed or took too long.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.cli import BAD_INPUT, EXIT_INTERRUPTED, SHOW_TRACEBACK, UserError, report, warn
from src.config import Config, as_dict, register_schemas
from src.measure import records
from src.measure.records import Record
from src.measure.row import Row
from src.places import PACKAGE

register_schemas()  # on import, for the job of a launcher, which unpickles what names this file and composes next
EXIT_CRASHED = 70
OWN_EXITS = (0, 1, 2)  # what measure() returns: all well, a method failed (and has its row), bad input
# Who ends a whole job signals all of its processes. This one's own signal, which ends it without a row that would call
# that a failure of what was measured, may then come a moment after the child's death.
ENDED_FROM_OUTSIDE = (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2)
PR_SET_PDEATHSIG = 1
STOP_SECONDS = 3.0
PRELOADED = ("src.measure.runner", "src.measure.summary", "src.report.tables", "src.hub", "pandas", "yaml")


def measure(config: Config, pending: Path | None = None) -> int:
    """Measure one configuration in this process and print its table. Returns 0, or 1 where a method failed.

    Args:
        pending: where to leave the rows that stand if this process never comes back.
    """
    from src.hub import GatedError
    from src.measure.estimate import in_words  # after --help and bad settings: torch takes seconds to import
    from src.measure.machine import manifest
    from src.measure.plan import prepare, results_dir_of
    from src.measure.runner import run
    from src.measure.summary import failed_before_planning, to_records
    from src.report.tables import comparison_table, title

    try:
        plan = prepare(config)
    except GatedError as error:
        for record in failed_before_planning(config, "gated", str(error)):
            records.write(record, results_dir_of(config))
        raise
    if pending:
        _write_pending(pending, plan.results_dir, to_records(plan, manifest(plan.device), as_dict(plan.config)))
    if config.rerun or plan.recorded() is None:
        print(f"measuring {', '.join(config.compared_methods)}: about {in_words(plan.seconds())}", flush=True)
    rows = [record.row for record in run(plan)]
    print(f"\n{title(rows[0])}\n\n{comparison_table(rows)}\n\nrecords: {plan.results_dir}", flush=True)
    return int(any(row.status not in {"ok", "skipped"} for row in rows))


def run_apart(config: Config) -> int:
    """Measure one configuration in a process of its own and return its exit code; one that died has rows that say so.

    Raises:
        KeyboardInterrupt: the user stopped it; the process is gone too.
    """
    if not config.isolate:
        return measure(config)
    with tempfile.TemporaryDirectory(prefix="prepack-bench-") as folder:
        pending = Path(folder) / "pending.json"
        oom_kills, timed_out = _kernel_oom_kills(), threading.Event()
        template = Template.running()

        def end() -> None:
            timed_out.set()
            template.kill()

        timer = threading.Timer(config.timeout_s, end) if config.timeout_s else None
        try:
            with _terminate_as_interrupt():
                template.start(config, pending)
                if timer:
                    timer.start()
                code = template.wait()
                if code in ENDED_FROM_OUTSIDE:
                    time.sleep(1)
        except KeyboardInterrupt:
            template.stop()
            raise
        finally:
            if timer:
                timer.cancel()
        if code in OWN_EXITS:
            return code
        if timed_out.is_set():
            status, reason = "timeout", f"not finished after timeout_s={config.timeout_s:g}"
        elif code == -signal.SIGKILL and _kernel_oom_kills() > oom_kills:
            status, reason = "oom", "the kernel killed the process because memory ran out"
        elif code < 0:
            status, reason = "error", f"the process was ended by {signal.Signals(-code).name}"
        else:
            status, reason = "error", f"the process ended with exit code {code}"
        _write_failures(pending, status, reason, config)
        return 1


class Template:
    """The process that measuring ones are forked from: it has imported what they need, and computes nothing itself.

    Importing takes longer than many a measurement. A fork of a process that has imported everything, and has neither
    started a thread pool nor touched a GPU, is as clean as a new process, and is there at once.
    """

    _running: Template | None = None

    @classmethod
    def running(cls) -> Template:
        """The one of this program, started where there is none, or one of another environment or output."""
        outputs = [(found.st_dev, found.st_ino) for found in map(os.fstat, (1, 2))]
        belongs_to = (os.environ.copy(), os.getcwd(), outputs)
        if cls._running and (cls._running._belongs_to != belongs_to or cls._running._process.poll() is not None):
            cls._running.stop()
        if cls._running is None:
            cls._running = cls(belongs_to)
        return cls._running

    def __init__(self, belongs_to: object) -> None:
        self._belongs_to = belongs_to
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: a folder src of the user's in the current folder is not this one
                [sys.executable, "-P", "-m", "src.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path, "HYDRA_FULL_ERROR": str(int(SHOW_TRACEBACK))},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends this one
            )
        self._pipe = ours.makefile("rw", encoding="utf-8")
        self._measuring: int | None = None
        ours.close()  # the file keeps it open
        atexit.register(self.stop)

    def start(self, config: Config, pending: Path) -> None:
        """Have a configuration measured."""
        with contextlib.suppress(BrokenPipeError):  # wait() finds out
            self._pipe.write(json.dumps({"config": as_dict(config), "pending": str(pending)}) + "\n")
            self._pipe.flush()

    def wait(self) -> int:
        """Sleep until it is measured: the exit code, or the signal that ended it, negative."""
        try:
            self._measuring = int(self._pipe.readline())
            code = int(self._pipe.readline())
        except (OSError, ValueError):  # the template itself is gone
            code = self._process.wait()
            self.stop()
        self._measuring = None
        return code

    def kill(self) -> None:
        """End what measures now."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._measuring or self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it, and what measures now, within seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                break
        with contextlib.suppress(OSError):
            self._pipe.close()
        Template._running = None
        atexit.unregister(self.stop)


def _write_pending(path: Path, results_dir: Path, rows: list[Record], reason: str | None = None) -> None:
    content = {
        "results_dir": str(results_dir.resolve()),
        "records": [asdict(record) for record in rows],
        "reason": reason,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_failures(pending: Path, status: str, reason: str, config: Config) -> None:
    """Complete the rows that a dead child left, and write those that replace no finished record."""
    try:
        content = json.loads(pending.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        warn(f"{', '.join(config.compared_methods)}: {status}, {reason}, before prompts were loaded: there is no row")
        return
    results_dir = Path(content["results_dir"])
    for fields in content["records"]:
        record = Record(Row(**fields.pop("row")), **fields)
        record.row.status, record.row.status_reason = status, content["reason"] or reason
        warn(f"{record.row.run_id}: {record.row.status}, {record.row.status_reason}")
        with contextlib.suppress(ValueError):
            if records.read(results_dir / record.row.run_id).row.status == "ok":
                continue
        records.write(record, results_dir)


def _kernel_oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines())
        return int(counters.get("oom_kill", 0))
    except OSError:
        return 0


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A polite kill (a cluster's scheduler, a closed terminal) ends a run as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
