"""python -m src.advise dataset=… model=…: which method and batch size to use here, from a minute's calibration."""

from __future__ import annotations

import functools
import sys

from ..cli import guarded
from ..compose import compose
from .settings import arrivals, read_arguments


def main() -> None:
    """Read the settings, calibrate where needed, predict, print the table and the advice."""
    settings, overrides = read_arguments(sys.argv[1:])
    config = compose([*overrides, "methods=[full-batching]", "batch_size=1", "protocol=modern", "metric=ttft",
                         *arrivals(settings, overrides)])  # fmt: skip
    from .session import advise  # after bad settings: torch takes seconds to import

    advise(config, settings)


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
