"""python -m src.run: measure one configuration, or with --multirun a sweep of them."""

from __future__ import annotations

import functools
import os
import re
import sys
from dataclasses import fields
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig

from . import places
from .authors import in_our_words
from .cli import BAD_INPUT, JobFailed, UserError, guarded, report
from .compose import check_groups, register_schemas, typed
from .config import CONFIG_DIR, Config
from .jobs import cluster
from .jobs.apart import run_apart


def main() -> int:
    """Compose the settings with Hydra and measure; the exit code is the worst of a sweep's (0 ok, 1 failed, 2 bad)."""
    codes: list[int] = []
    _arrange_arguments()
    register_schemas()

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
    def task(composed: Any) -> None:
        # One bad value in a sweep must not keep the other runs from being measured.
        try:
            code = _measure(typed(composed), list(HydraConfig.get().overrides.task))
        except BAD_INPUT as error:
            code = report(error)
        if code and "SUBMITIT_EXECUTOR" in os.environ:
            raise JobFailed(code)  # in a launcher's job the list is in another process, and an exception reaches it
        codes.append(code)

    if any(argument.startswith("hydra/launcher=slurm") for argument in sys.argv):
        cluster.check()
    try:
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


def _measure(config: Config, overrides: list[str]) -> int:
    """Measure a configuration, or search for the rate that it leaves open. Returns 0, or 1 where a method failed."""
    if not config.searches_rate:
        return run_apart(config)
    from .jobs import largest_rate  # it imports torch, which takes seconds, and no other run needs it here

    return largest_rate.search_and_print(config, overrides)


def _arrange_arguments() -> None:
    """Put settings behind Hydra's flags, for Hydra takes them in one piece only; say in one line what is no flag.

    Raises:
        UserError: a flag that there is not, one whose value is wrong, or settings that are written as flags.
    """

    known = [each.name for each in fields(Config)]
    if found := in_our_words(sys.argv[1:], known):
        flag, meant = found
        raise UserError(flag, "settings have no dashes", f"type {places.command_line('run')} {' '.join(meant)}")

    def complain(message: str) -> NoReturn:
        named = re.match(r"(?:argument ([^\s/:]+)[^\s:]*: |unrecognized arguments: (\S+))(.*)", message)
        flag, unknown, problem = named.groups() if named else ("flags", None, message)
        remedy = "`--hydra-help` lists the flags; settings have the form setting=value"
        raise UserError(unknown or flag, "there is no such flag" if unknown else problem, remedy)

    parser = get_args_parser()
    parser.error = complain  # type: ignore[method-assign]
    settings = parser.parse_intermixed_args().overrides
    check_groups(settings)
    sys.argv[1:] = [each for each in sys.argv[1:] if each not in set(settings)] + settings


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
