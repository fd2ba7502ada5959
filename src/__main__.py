"""prepack: the commands of this package as one. ``prepack run`` is ``python -m src.run`` of a checkout."""

from __future__ import annotations

import functools
import importlib
import sys

from .cli import UserError, guarded

COMMANDS = {
    "run": "measure one configuration, or with --multirun a sweep",
    "reproduce": "the paper's experiments and today's, then the report",
    "report": "tables, plots and one page of the records below a folder",
    "compare": "records of several machines, or of two versions on one",
    "demo": "eight questions answered by a small real model, packed beside padded",
    "advise": "which method and batch size to use here, after a minute's calibration",
}


def main() -> int:
    """Hand over to the command that is named first."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in {"-h", "--help"}:
        lines = [f"  {command:<11}{what}" for command, what in COMMANDS.items()]
        print(
            "\n".join(["usage: prepack COMMAND [setting=value …]", "", *lines, "", "prepack COMMAND --help says more"])
        )
        return 0
    if name not in COMMANDS:
        raise UserError(name, "there is no such command", f"choose one of {', '.join(COMMANDS)}")
    sys.argv = [f"prepack {name}", *arguments]
    module = importlib.import_module(f"{__package__}.{name}")
    if hasattr(module, "__path__"):  # a command with files of its own is a package
        module = importlib.import_module(f"{__package__}.{name}.__main__")
    return int(module.command())


command = functools.partial(guarded, main)

if __name__ == "__main__":
    sys.exit(command())
