"""``python -m src.run`` and scripts without waiting for imports: forked from a process that has done them all.

As a user has it, a run is a fresh interpreter, and so is the template process that it starts. Tests that are about what
happens to a run, and need many, take these: both are forks here. Tests of the commands themselves start Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
CODE = "returncode"


class Polled:
    """A process that is asked after, as ``subprocess.Popen`` is."""

    def poll(self) -> int | None:
        raise NotImplementedError

    def wait(self, timeout: float = 120) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(type(self).__name__, timeout)
            time.sleep(0.02)
        return code


class Started(Polled):
    """What ``subprocess.Popen`` would be, of a run that was forked."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        code = self._folder / CODE
        if self.returncode is None and code.exists():
            self.returncode = int(code.read_text(encoding="ascii"))
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        self.wait(timeout)
        return self.output, (self._folder / "stderr").read_text(encoding="utf-8")

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self._folder / "stdout").read_text(encoding="utf-8")


def start(
    *arguments: str, script: str | None = None, output: Path | None = None, cwd: Path = ROOT, **environment: str
) -> Started:
    """A run in the background, in a session of its own.

    Args:
        script: Python to run instead, as ``__main__``.
        output: what it prints goes there.
    """
    folder = Path(tempfile.mkdtemp(prefix="prepack-bench-started-"))
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    launcher = _launcher()
    assert launcher.stdin
    assert launcher.stdout
    asked = {
        "arguments": arguments, "script": script, "cwd": str(cwd), "environment": dict(os.environ) | environment,
        "folder": str(folder), "output": str(output or folder / "stdout"),
    }  # fmt: skip
    launcher.stdin.write(json.dumps(asked) + "\n")
    launcher.stdin.flush()
    return Started(int(launcher.stdout.readline()), folder)


def finished(*arguments: str, timeout: float = 120, **asked: Any) -> subprocess.CompletedProcess[str]:
    """A run, once it has ended."""
    run = start(*arguments, **asked)
    out, err = run.communicate(timeout)
    return subprocess.CompletedProcess(arguments, run.wait(), out, err)


@functools.cache
def _launcher() -> subprocess.Popen[str]:
    """One for each test process; it ends with it."""
    return subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def main() -> None:
    """Read what to run; answer with the process that runs it."""
    for name in ("src.run", "src.jobs.template", "src.jobs.worker"):
        importlib.import_module(name)
    gc.freeze()  # as the template process does: a run collects garbage before each pass
    for line in sys.stdin:
        with contextlib.suppress(ChildProcessError):  # nobody else asks after those between
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            _wait_for(json.loads(line))


def _wait_for(asked: dict[str, Any]) -> NoReturn:
    """In a process between: start the run, say which it is, wait, and leave its exit code."""
    folder = Path(asked["folder"])
    if not (run := os.fork()):
        _as_started(asked, folder)
    print(run, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(run, 0)[1])
    draft = folder / f"{CODE}.draft"
    draft.write_text(str(code), encoding="ascii")
    draft.rename(folder / CODE)
    os._exit(0)


def _as_started(asked: dict[str, Any], folder: Path) -> NoReturn:
    from src import cli, run
    from src.jobs import apart

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate((asked["output"], folder / "stderr"), 1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    _set_environment(asked["environment"])
    os.chdir(asked["cwd"])
    tempfile.tempdir = None
    apart.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=Forked, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    if asked["script"]:
        _end(lambda: exec(compile(asked["script"], "<script>", "exec"), {"__name__": "__main__"}) or 0)
    sys.argv = ["src.run", *asked["arguments"]]
    _end(functools.partial(cli.guarded, run.main))


class Forked(Polled):
    """As ``subprocess.Popen``, where the template process is started."""

    def __init__(self, command: list[str], pass_fds: list[int], env: dict[str, str], **_: Any) -> None:
        from src.jobs import template

        self.returncode: int | None = None
        if self._forked():
            os.setsid()
            atexit._clear()  # what the run will remove when it ends
            _set_environment(env)
            os.closerange(3, pass_fds[0])
            os.closerange(pass_fds[0] + 1, 1024)
            sys.argv = ["src.jobs.template", *command[-2:]]
            _end(template.main)

    def _forked(self) -> bool:
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        return self.pid == 0

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _end(run: Callable[[], int]) -> NoReturn:
    """End this process as Python would, whatever had called the fork being left where it was."""
    code = 1
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads it any more, or its disk is full
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
