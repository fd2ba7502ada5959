"""python -m src.run: measure one configuration, or with --multirun a sweep of them."""

from __future__ import annotations

import functools
import os
import re
import sys
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from src import cluster
from src.apart import run_apart
from src.cli import BAD_INPUT, JobFailed, UserError, guarded, report
from src.completion import complete
from src.config import CONFIG_DIR, register_schemas, typed


def main() -> int:
    """Compose the settings with Hydra and measure; the exit code is the worst of a sweep's (0 ok, 1 failed, 2 bad)."""
    codes: list[int] = []
    _check_flags()
    register_schemas()

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
    def task(composed: Any) -> None:
        # One bad value in a sweep must not keep the other runs from being measured.
        try:
            code = run_apart(typed(composed))
        except BAD_INPUT as error:
            code = report(error)
        if code and "SUBMITIT_EXECUTOR" in os.environ:
            raise JobFailed(code)  # a launcher's job: the list is another process's, an exception finds its way there
        codes.append(code)

    if any(argument.startswith("hydra/launcher=slurm") for argument in sys.argv):
        cluster.check()
    try:
        if not complete(sys.argv[1:], task):
            task()
    except Exception as error:
        lines = str(error).splitlines()
        if refused := [line for line in lines if line.startswith("sbatch:")]:
            raise UserError("hydra/launcher", f"sbatch takes no job ({refused[-1]})") from None
        if not (isinstance(error, JobFailed) or type(error).__module__.startswith("submitit.")):
            raise
        print(f"error: {' '.join(lines[:2])}", file=sys.stderr)
        return error.code if isinstance(error, JobFailed) else 1
    return max(codes, default=0)


def _check_flags() -> None:
    """Judge Hydra's flags as it will, but end in one line where it would print its usage or a traceback.

    Raises:
        UserError: a flag that there is not, a value that is wrong, or flags that do not go together.
    """

    def complain(message: str) -> NoReturn:
        named = re.match(r"(?:argument ([^\s/:]+)[^\s:]*: |unrecognized arguments: (\S+))(.*)", message)
        flag, unknown, problem = named.groups() if named else ("flags", None, message)
        remedy = "`--hydra-help` lists the flags; settings have the form setting=value"
        raise UserError(unknown or flag, "there is no such flag" if unknown else problem, remedy)

    parser = get_args_parser()
    parser.error = complain  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args()
    # Hydra takes settings in one piece only, and would call the second piece unknown flags.
    settings = set(flags.overrides)
    sys.argv[1:] = [each for each in sys.argv[1:] if each not in settings] + flags.overrides
    asked = {"--multirun": flags.multirun, "--cfg": flags.cfg, "--info": flags.info, "-sc": flags.shell_completion}
    given = [name for name, value in asked.items() if value]
    if len(given) > 1 or (given and flags.run):
        raise UserError(" ".join(given), "they do not go together", "give one of them")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve", "it says how --cfg prints settings", "write --cfg job --resolve")
    if flags.experimental_rerun is not None:
        raise UserError("--experimental-rerun", "there is nothing of Hydra's to run again", "repeat the same command")
    known = re.fullmatch("(install|uninstall|query)=(bash|fish|zsh)", " ".join(flags.overrides))
    if flags.shell_completion and not known:
        raise UserError("-sc", f"'{' '.join(flags.overrides)}'", "write -sc install=bash (or fish, zsh)")


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
