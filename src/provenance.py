"""Where the figures of a record come from: the commit, the hash of the code that makes them, versions of packages."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path

from .cli import UserError
from .places import CHECKOUT, PACKAGE

PACKAGES = (
    "torch", "transformers", "datasets", "bitsandbytes", "nvidia-ml-py", "pandas", "hydra-core", "numpy", "scipy",
    "accelerate", "mistral-common", "sentencepiece", "binpacking",
)  # fmt: skip
# What makes a figure: settings, statistics, prompts, methods, who is served next, and the measuring of them.
MEASURING_CODE = ("config.py", "interval.py", "stats.py", "workload", "prefilling", "queueing", "measure")
MEASURING_FILES = ("*.py", "*.csv", "*.cpp")
# By this rule the records made until November 2026 were hashed: without policies and without kernels in C++.
EARLIER_CODE = ("config.py", "config_under_load.py", "interval.py", "stats.py", "workload", "prefilling", "measure")
EARLIER_FILES = ("*.py", "*.csv")
GIVEN_COMMIT = "PREPACK_BENCH_COMMIT"  # of a tree carried without its repository; scripts/share.py checks it
GIT_LOCATIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set in hooks, of the repository that runs them


@functools.cache
def code_hash(
    package: Path = PACKAGE, parts: tuple[str, ...] = MEASURING_CODE, files: tuple[str, ...] = MEASURING_FILES
) -> str:
    """12 hex digits over every source file that makes a figure: a change of any other measures nothing anew.

    Args:
        package: the folder ``src`` of a tree, by default the one that runs.
        parts: its files and folders that count, in this order.
        files: patterns of the files that count within a folder.
    """
    digest = hashlib.sha256()
    for part in parts:
        path = package / part
        for file in [path] if path.is_file() else sorted(file for each in files for file in path.rglob(each)):
            name = file.relative_to(package).as_posix()  # the same, whatever the package is installed as
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where there is none: a repository further up is somebody else's."""
    if CHECKOUT is None or not (CHECKOUT / ".git").exists():
        return None
    environment = {name: value for name, value in os.environ.items() if name not in GIT_LOCATIONS}
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed_commit() -> str | None:
    """The commit that pip noted where it installed this very code from a repository."""
    try:
        distribution = importlib.metadata.distribution("prepack-bench")
        if CHECKOUT is not None or Path(str(distribution.locate_file(PACKAGE.name))).resolve() != PACKAGE:
            return None
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        return str(origin["vcs_info"]["commit_id"])
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return None


def _given_commit() -> str | None:
    """The commit of this tree as given by the person who copied it here, without its repository or over another one.

    Raises:
        UserError: it is no commit's full name.
    """
    given = os.environ.get(GIVEN_COMMIT) or None
    if given and not re.fullmatch("[0-9a-f]{40}", given):
        raise UserError(GIVEN_COMMIT, f"'{given}'", "give the 40 hex digits that `git rev-parse HEAD` prints")
    return given


def commit() -> tuple[str | None, bool]:
    """The commit of the source tree, and whether it was given, by one who knows better than a repository here.

    Raises:
        UserError: what was given is no commit's full name.
    """
    known, given = _git("rev-parse", "HEAD") or _installed_commit(), _given_commit()
    return given or known, bool(given and given != known)


def is_changed() -> bool | None:
    """Whether sources or settings differ from the commit; None where no repository can tell, or a commit was given."""
    if commit()[1]:
        return None
    changed = _git("status", "--porcelain", "--", "src", "configs", "pyproject.toml")
    return None if changed is None else bool(changed)


def packages() -> dict[str, str | None]:
    """Version of each package that matters; None: it is not installed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
