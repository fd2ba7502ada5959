"""Say whether this Python has every package that pyproject.toml asks for (make … PY=python3).

With ``--without-dev`` only those that measuring needs.
"""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def main() -> int:
    """Print one line per requirement that is not met; 0 where all are, else 2."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = []
    dev = [] if "--without-dev" in sys.argv[1:] else project["optional-dependencies"]["dev"]
    for text in [*project["dependencies"], *dev]:
        wanted = Requirement(text)
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            missing.append(f"  {wanted} (found: {found or 'not installed'})")
    if missing:
        print(f"error: {sys.executable} lacks:", *missing, sep="\n", file=sys.stderr)
        print("install them there, or leave PY= out to use .venv", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
