"""python -m src.run: measure one configuration, or with --multirun a sweep of them."""

from __future__ import annotations

import os
import sys
from typing import Any

import hydra

from src import cluster
from src.cli import BAD_INPUT, JobFailed, UserError, guarded, report
from src.config import CONFIG_DIR, register_schemas, typed
from src.worker import run_apart


def main() -> int:
    """Compose the settings with Hydra and measure; the exit code is the worst of a sweep's (0 ok, 1 failed, 2 bad)."""
    codes: list[int] = []
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


if __name__ == "__main__":
    sys.exit(guarded(main))
