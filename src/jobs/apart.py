"""Runs a configuration in a process of its own, so that nothing it leaves behind or dies of affects the next one.

The parent composes settings, has a child forked from a template process (template.py) and sleeps until it ends. The
child measures, writes its records and prints its table. Before it starts, it leaves rows as they would stand if it
never came back; the parent completes and writes them where the child was killed, crashed or took too long.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import places, terminal
from ..cli import EXIT_BAD_INPUT, SHOW_TRACEBACK, note_recorded, warn
from ..compose import register_schemas
from ..config import Config, as_dict
from ..records import store
from ..records.row import Row
from ..records.store import Record
from .template import EXIT_FAILED

if TYPE_CHECKING:
    from ..measure.plan import Plan

register_schemas()  # a launcher's job unpickles a function that imports this file, and then composes
# What the child itself returns: all well, a method failed (and has its row), bad input.
RECORDED_EXITS = (0, EXIT_FAILED)
OWN_EXITS = (*RECORDED_EXITS, EXIT_BAD_INPUT)
# A scheduler signals every process of a job that it ends. The signal to this process may come a moment after the death
# of the child; waiting for it avoids a row that would call the end of the job a failure of the method.
ENDED_FROM_OUTSIDE = (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2)
STOP_SECONDS = 3.0
BROKEN_OFF = 75  # exit code of a configuration that was ended because the given minutes were over


def run_apart(config: Config, plan: Plan | None = None, at_most_s: float | None = None) -> int:
    """Measure one configuration in a process of its own and return its exit code; one that died has rows that say so.

    Args:
        plan: the configuration's plan, where the caller has made it: the child then does not make it again.
        at_most_s: seconds after which it is broken off, which is no failure of it: ``BROKEN_OFF``, and no row.

    Raises:
        KeyboardInterrupt: the user stopped it; the process is gone too.
    """
    if not config.isolate:
        from .worker import measure_and_print  # torch takes seconds to import, and a parent usually needs none

        code = measure_and_print(config, plan)
        note_recorded()
        return code
    with tempfile.TemporaryDirectory(prefix="prepack-bench-") as folder:
        pending = Path(folder) / "pending.json"
        oom_kills, over = _kernel_oom_kills(), set[str]()
        template = Template.running()

        def end(why: str) -> None:
            over.add(why)
            template.kill()

        limits = {"timeout": config.timeout_s, "broken off": at_most_s}
        timers = [threading.Timer(limit, end, [why]) for why, limit in limits.items() if limit]
        try:
            with _terminate_as_interrupt():
                template.start(config, pending, plan)
                for timer in timers:
                    timer.start()
                code = template.wait()
                if code in ENDED_FROM_OUTSIDE:
                    time.sleep(1)
        except KeyboardInterrupt:
            template.stop()
            raise
        finally:
            for timer in timers:
                timer.cancel()
        if code in OWN_EXITS:
            if code in RECORDED_EXITS:
                note_recorded()
            return 1 if code == EXIT_FAILED else code
        if "broken off" in over:
            return BROKEN_OFF
        if over:
            status, reason = "timeout", f"not finished after timeout_s={config.timeout_s:g}"
        elif code == -signal.SIGKILL and _kernel_oom_kills() > oom_kills:
            status, reason = "oom", "the kernel killed the process because memory ran out"
        elif code < 0:
            status, reason = "error", f"the process was ended by {signal.Signals(-code).name}"
        else:
            status, reason = "error", f"the process ended with exit code {code}"
        _write_failures(pending, status, reason, config)
        return 1


def _file_behind(descriptor: int) -> tuple[int, int] | None:
    """What tells the file behind a descriptor from others; None where it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Template:
    """The template process, seen from the parent (``template.py``)."""

    _running: Template | None = None

    @classmethod
    def running(cls) -> Template:
        """The template of this program; a new one where there is none, or where environment or output have changed."""
        outputs = [_file_behind(number) for number in (1, 2)]
        belongs_to = (os.environ.copy(), os.getcwd(), outputs)
        if cls._running and (cls._running._belongs_to != belongs_to or cls._running._process.poll() is not None):
            cls._running.stop()
        if cls._running is None:
            cls._running = cls(belongs_to)
        return cls._running

    def __init__(self, belongs_to: object) -> None:
        self._belongs_to = belongs_to
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: do not import a folder src that happens to lie in the current folder
                [sys.executable, "-P", "-m", f"{places.NAME}.jobs.template", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=places.environment() | {"HYDRA_FULL_ERROR": str(int(SHOW_TRACEBACK))},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends this one
            )
        self._pipe = ours.makefile("rw", encoding="utf-8")
        self._measuring: int | None = None
        ours.close()  # the file keeps it open
        atexit.register(self.stop)

    def start(self, config: Config, pending: Path, plan: Plan | None) -> None:
        """Have a configuration measured."""
        packed = pending.with_name("plan.pickle") if plan else None
        if packed:
            packed.write_bytes(pickle.dumps(plan))
        task = {"config": as_dict(config), "pending": str(pending), "plan": packed and str(packed),
                "progress": terminal.progress_shown()}  # fmt: skip
        with contextlib.suppress(BrokenPipeError):  # wait() finds out
            self._pipe.write(json.dumps(task) + "\n")
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


def _write_failures(pending: Path, status: str, reason: str, config: Config) -> None:
    """Complete the rows that a dead child left, and write those that replace no finished record."""
    try:
        content = json.loads(pending.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        warn(f"{', '.join(config.compared_methods)}: {status}, {reason}, before prompts were loaded: there is no row")
        return
    results_dir, failed = Path(content["results_dir"]), []
    for fields in content["records"]:
        record = Record(Row(**fields.pop("row")), **fields)
        record.row.status = content.get("status", status)
        record.row.status_reason = content.get("reason", reason)
        warn(f"{record.row.run_id}: {record.row.status}, {record.row.status_reason}")
        with contextlib.suppress(ValueError):
            if store.read(results_dir / record.row.run_id).row.status == "ok":
                continue
        failed.append(record)
    store.write_each(failed, results_dir)


def _kernel_oom_kills() -> int:
    """Processes that the kernel has killed since it started because memory ran out; 0 where it does not say."""
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
