"""The Hugging Face hub, seen from a machine that may have no network: is it there, and what does its refusal mean."""

from __future__ import annotations

import functools
import os
import sys
import threading
import urllib.error
import urllib.request

from src.cli import UserError, warn

PROBE_SECONDS = 4.0


class GatedError(UserError):
    """The hub has the model or dataset, but wants a licence accepted or a login first."""


def endpoint() -> str:
    """The hub's address (``HF_ENDPOINT`` names a mirror)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@functools.cache
def prepare() -> bool:
    """Ask once, within seconds, whether the hub answers; where it does not, make its libraries use their cache only.

    Their own retries take up to a minute to say the same. Must run before transformers or datasets are imported for
    the environment variable to count; libraries that are loaded already are told directly.

    Returns:
        Whether the hub can be reached.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    answered = threading.Event()

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=PROBE_SECONDS).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it refused this request, but it is there
        except (OSError, ValueError):
            pass

    # A thread, because a name server that does not answer is not bound by the socket's timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    if answered.is_set():
        return True
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return False


def explain(error: BaseException, setting: str, what: str, remedy: str) -> UserError:
    """Turn what the hub's libraries raised for ``what`` (a hub id) into one line that names ``setting``."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = {type(link).__name__ for link in chain}
    text = " ".join(str(link) for link in chain).lower()
    if "GatedRepoError" in names or "gated repo" in text:
        return GatedError(
            setting, f"{what} is gated", "accept its licence on the hub and log in with `hf auth login`, " + remedy
        )
    if not prepare():
        return UserError(setting, f"{what}: {endpoint()} cannot be reached and the cache does not hold it", remedy)
    if "RepositoryNotFoundError" in names or "DatasetNotFoundError" in names:
        return UserError(setting, f"the hub has no '{what}' that you may see", "check the id, or log in, " + remedy)
    if "RevisionNotFoundError" in names:
        return UserError(setting, f"{what} has no such revision", "name a commit, tag or branch of it")
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return UserError(setting, f"{what} could not be loaded ({type(error).__name__}: {first_line[:200]})", remedy)


def fall_back(error: UserError, instead: str) -> None:
    """Say that an ``auto`` source takes ``instead`` because of ``error``."""
    warn(f"{error.setting}: {error.problem}; using {instead}")
