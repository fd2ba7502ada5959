"""The Hugging Face hub, from a machine that may have no network: does it answer, which commit, what went wrong?"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .cli import UserError, warn

PROBE_SECONDS = 4.0
ASKED_AT_MOST = 2
# Ids of papers and tutorials that are gone, were renamed, or are scripts, which datasets no longer runs.
REPLACED = {
    "samsum": "knkarthick/samsum",
    "Samsung/samsum": "knkarthick/samsum",
    "wikitext": "Salesforce/wikitext",
    "lukaemon/mmlu": "cais/mmlu",
    "decapoda-research/llama-7b-hf": "huggyllama/llama-7b",
}
LATE = {
    "TimeoutError",
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "ConnectError",
    "ConnectionError",
}
CUT = {"RemoteProtocolError", "ReadError", "WriteError", "IncompleteRead"}


class GatedError(UserError):
    """The hub has the model or dataset, but wants a licence accepted or a login first."""


def endpoint() -> str:
    """The hub's address (``HF_ENDPOINT`` names a mirror)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@functools.cache
def absence() -> str | None:
    """Ask once, within seconds, whether the hub answers; where it does not, make its libraries use their cache only.

    Their own retries take up to a minute to say the same. Must run before transformers or datasets are imported for
    the environment variable to count; libraries that are loaded already are told directly.

    Returns:
        Why the hub cannot be asked; None where it can.
    """
    variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    if os.environ.get(variable, "").upper() in {"1", "TRUE", "YES", "ON"}:
        return f"{variable} is set"
    answered = threading.Event()
    try:
        seconds = float(os.environ["HF_HUB_ETAG_TIMEOUT"])  # the hub's own variable for slow connections
    except (KeyError, ValueError):
        seconds = PROBE_SECONDS

    def probe() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it refused this request, but it is there
        except (OSError, ValueError):
            pass

    # A thread, because a name server that does not answer is not bound by the socket's timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if answered.is_set():
        _bound_waiting()
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return f"{endpoint()} cannot be reached"


class _Asked(threading.local):
    """The request that this thread waits for, and how often it has been made without an answer."""

    request: tuple[str, str] | None = None
    times = 0


def _bound_waiting() -> None:
    """Let no request wait longer than the user's timeouts, nor be made more than twice without an answer.

    The hub's libraries make some requests without any limit, and others with one of a minute, six times.
    """
    from huggingface_hub import constants, get_session, set_client_factory

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # errors are reported by this program, in one line
    asked = _Asked()

    def before(request: Any) -> None:
        headers = request.method == "HEAD"
        limit = constants.HF_HUB_ETAG_TIMEOUT if headers else constants.HF_HUB_DOWNLOAD_TIMEOUT
        timeouts = request.extensions.get("timeout", {})
        bounded = {name: min(timeouts.get(name) or limit, limit) for name in ("connect", "read", "write", "pool")}
        request.extensions = request.extensions | {"timeout": bounded}
        this = (request.method, str(request.url))
        asked.times = asked.times + 1 if asked.request == this else 1
        asked.request = this
        if asked.times > ASKED_AT_MOST:
            asked.request = None
            raise TimeoutError(f"no answer within {limit} s, {ASKED_AT_MOST} times")

    def after(_: Any) -> None:
        asked.request = None

    standard = get_session()
    hooks = standard.event_hooks
    hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}
    set_client_factory(lambda: type(standard)(event_hooks=hooks, follow_redirects=True, timeout=None))


def commit_of(what: str, kind: str, revision: str | None) -> str:
    """The commit that a branch or tag (None: main) of a model or dataset is now; offline, when it was last asked for.

    Args:
        what: hub id.
        kind: ``model`` or ``dataset``.

    Raises:
        Exception: what the hub's library raises; ``explain`` puts it in words.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    known = "config.json" if kind == "model" else "README.md"
    if absence():
        return Path(
            snapshot_download(what, repo_type=kind, revision=revision, allow_patterns=[known], local_files_only=True)
        ).name
    try:
        return Path(hf_hub_download(what, known, repo_type=kind, revision=revision)).parent.name
    except EntryNotFoundError as error:  # a dataset may have no card; the answer still names the commit
        commit = getattr(getattr(error, "response", None), "headers", {}).get("X-Repo-Commit")
        if kind == "model" or not commit:
            raise
        return str(commit)


def explain(error: BaseException, setting: str, what: str, remedy: str, revision: str | None = None) -> UserError:
    """Turn what the hub's libraries raised for ``what`` (a hub id) into one line that names ``setting``.

    Args:
        remedy: what works without the hub; stands behind what would mend it.
    """
    chain = _chain(error)
    names = {type(link).__name__ for link in chain}
    status = next((code for link in chain if (code := _status(link))), 0)
    text = " ".join(str(link) for link in chain).lower()
    kind = setting.partition(".")[0]
    at = f"{what}@{revision}" if revision else what
    instead = f" ({REPLACED[what]} replaces it)" if what in REPLACED else ""
    if "GatedRepoError" in names or "cannot access gated repo" in text or "is a gated dataset" in text:
        page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{what}"
        accept = f"accept its licence on the hub ({page}) and log in with `hf auth login`"
        return GatedError(setting, f"{what} is gated", f"{accept}, {remedy}")
    if absent := absence():
        return UserError(setting, f"{at}: {absent} and the cache does not hold it{instead}", remedy)
    if "RevisionNotFoundError" in names or "invalid rev id" in text:
        problem, mend = f"{what} has no revision '{revision}'", "name a commit, tag or branch of it"
        return UserError(f"{kind}.revision", problem, mend)
    missing = names & {"RepositoryNotFoundError", "DatasetNotFoundError"}
    if instead and (missing or not broke(error)):
        return UserError(setting, f"the hub has no '{what}' that still loads{instead}", f"take that, or {remedy}")
    if missing:
        mend = "check the id, or log in with `hf auth login` if it is private"
        return UserError(setting, f"the hub has no '{what}' that you may see", f"{mend}, {remedy}")
    found = ""
    if status == 401:
        found, mend = "the hub does not know your token", "mend HF_TOKEN, or log in again with `hf auth login`"
    elif status == 403 or "403 forbidden" in text:
        found, mend = "your token may not read it", "log in with one that may"
    elif names & CUT or "consistency check failed" in text:
        found, mend = "the download broke off", "start again, for complete files are kept"
    elif names & LATE:
        found = f"{endpoint()} did not answer in time"
        mend = "try later, raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds)"
    elif status >= 500 or status == 429:
        found, mend = f"{endpoint()} answers with status {status}", "try later"
    elif "RemoteEntryNotFoundError" in names and kind == "model":
        found, mend = "it holds no config.json", "name a model that transformers loads"
    elif "FileMetadataError" in names:
        found, mend = f"{endpoint()} does not answer as a hub does", "mend HF_ENDPOINT or the proxy"
    if found:
        return UserError(setting, f"{what}: {found}", f"{mend}, or {remedy}")
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return UserError(setting, f"{what} could not be loaded ({type(error).__name__}: {first_line[:200]})", remedy)


def broke(error: BaseException) -> bool:
    """Whether the hub failed to give something, rather than what it gave being of no use."""
    chain = _chain(error)
    return any(type(link).__name__ in CUT | LATE or _status(link) not in (0, 404) for link in chain)


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what led to it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _status(error: BaseException) -> int:
    """The status with which the hub answered, 0 where it did not."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def fall_back(error: UserError, instead: str) -> None:
    """Say that an ``auto`` source takes ``instead`` because of ``error``."""
    warn(f"{error.setting}: {error.problem}; using {instead}")
