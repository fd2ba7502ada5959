"""python -m src.run: measure one configuration, or with --multirun a sweep of them."""

from __future__ import annotations

import sys
from typing import Any

import hydra

from src.cli import BAD_INPUT, guarded, report
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
            codes.append(run_apart(typed(composed)))
        except BAD_INPUT as error:
            codes.append(report(error))

    task()
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(guarded(main))
